"""Tables, HTML and traces."""
