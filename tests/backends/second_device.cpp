// A device beside the CPU, for tests: tensors lie in memory of their own, operators compute as the
// CPU does, and tensors of the host are refused as CUDA refuses them. Counts what is allocated.

#include <ATen/EmptyTensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

#include <cstdlib>
#include <cstring>

namespace {

using at::IntArrayRef;
using at::Tensor;

const c10::Device kDevice(c10::DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
constexpr size_t kHeader = 64;  // holds the size; keeps data aligned

struct Counts {
  long requested = 0, allocations = 0, live = 0, peak = 0;
} counts;

void give_back(void* data) {
  char* start = static_cast<char*>(data) - kHeader;
  counts.live -= *reinterpret_cast<long*>(start);
  std::free(start);
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (!size) return {nullptr, nullptr, &give_back, kDevice};
    const size_t whole = (size + 2 * kHeader - 1) / kHeader * kHeader;
    char* start = static_cast<char*>(std::aligned_alloc(kHeader, whole));
    *reinterpret_cast<long*>(start) = static_cast<long>(size);
    counts.requested += size;
    counts.allocations += 1;
    counts.live += size;
    counts.peak = std::max(counts.peak, counts.live);
    void* data = start + kHeader;
    return {data, data, &give_back, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }
} allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kDevice.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream) const override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

bool is_here(const Tensor& x) { return x.defined() && x.device().is_privateuseone(); }

// The same bytes as a tensor of the CPU.
Tensor on_cpu(const Tensor& x) {
  if (!is_here(x)) return x;
  at::DataPtr data(x.storage().mutable_data(), c10::Device(at::kCPU));
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), x.storage().nbytes(), std::move(data), nullptr, false);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), x.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(x.sizes(), x.strides(), x.storage_offset());
  return made;
}

std::optional<Tensor> on_cpu(const std::optional<Tensor>& x) {
  return x && x->defined() ? std::optional<Tensor>(on_cpu(*x)) : std::nullopt;
}

Tensor empty(IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  const auto kind = dtype.value_or(at::kFloat);
  return at::detail::empty_generic(size, &allocator, kKeys, kind, format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  const auto kind = dtype.value_or(at::kFloat);
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys, kind);
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const Tensor& resize(const Tensor& x, c10::SymIntArrayRef size,
                     std::optional<at::MemoryFormat> format) {
  auto* impl = x.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const size_t needed = (impl->numel() + impl->storage_offset()) * x.dtype().itemsize();
  auto* storage = x.storage().unsafeGetStorageImpl();
  if (needed > storage->nbytes()) {
    auto data = allocator.allocate(needed);
    if (storage->nbytes()) std::memcpy(data.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(data));
    storage->set_nbytes(needed);
  }
  if (format && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  return x;
}

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                   IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, bool transposed,
                   IntArrayRef more, int64_t groups) {
  return at::convolution(on_cpu(x), on_cpu(weight), on_cpu(bias), stride, padding, dilation,
                         transposed, more, groups)
      .to(kDevice);
}

// What a layer of an LSTM is computed by on a device without a kernel of its own for it.
std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& from_x, const Tensor& from_hidden,
                                             const Tensor& memory,
                                             const std::optional<Tensor>& first_bias,
                                             const std::optional<Tensor>& second_bias) {
  Tensor sum = on_cpu(from_x) + on_cpu(from_hidden);
  for (const auto& bias : {on_cpu(first_bias), on_cpu(second_bias)})
    if (bias) sum = sum + *bias;
  const auto gates = sum.chunk(4, 1);
  const Tensor kept = gates[1].sigmoid() * on_cpu(memory) + gates[0].sigmoid() * gates[2].tanh();
  const Tensor hidden = gates[3].sigmoid() * kept.tanh();
  return {hidden.to(kDevice), kept.to(kDevice), sum.to(kDevice)};
}

bool writes(const c10::Argument& argument) {
  return argument.alias_info() && argument.alias_info()->isWrite();
}

std::vector<Tensor> tensors_in(const c10::IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  std::vector<Tensor> found;
  if (value.isList())
    for (const auto& item : value.toListRef())
      if (item.isTensor()) found.push_back(item.toTensor());
  return found;
}

// CUDA reads numbers of the host in elementwise operators, and nothing else of the host.
void refuse_host(const c10::OperatorHandle& op, at::ArrayRef<c10::IValue> arguments) {
  bool any_here = false, any_host = false, any_large = false;
  for (const auto& value : arguments)
    for (const auto& x : tensors_in(value)) {
      if (!x.defined()) continue;
      any_here |= is_here(x);
      any_host |= !is_here(x);
      any_large |= !is_here(x) && x.dim() > 0;
    }
  bool elementwise = false;
  for (const auto tag : op.getTags()) elementwise |= tag == at::Tag::pointwise;
  TORCH_CHECK(!any_here || !any_host || (elementwise && !any_large),
              "Expected all tensors to be on the same device: ", op.schema().name());
}

c10::IValue given_on_cpu(const c10::IValue& value, bool is_written) {
  if (value.isDevice()) return c10::Device(at::kCPU);
  if (value.isTensor() && value.toTensor().defined()) {
    const Tensor x = value.toTensor();
    // What an operator gives another size must have memory that it may change.
    if (is_written && !x.numel()) return at::empty(x.sizes(), x.options().device(at::kCPU));
    return on_cpu(x);
  }
  const auto tensors = tensors_in(value);
  if (tensors.empty()) return value;
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const auto& x : tensors) list.push_back(on_cpu(x));
    return list;
  }
  c10::List<std::optional<Tensor>> list;
  for (const auto& item : value.toListRef())
    list.push_back(item.isTensor() ? on_cpu(std::optional<Tensor>(item.toTensor()))
                                   : std::nullopt);
  return list;
}

void compute_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  const auto last = torch::jit::last(*stack, count);
  const std::vector<c10::IValue> given(last.begin(), last.end());
  refuse_host(op, given);
  std::vector<size_t> written;
  for (size_t i = 0; i < count; ++i)
    if (writes(schema.arguments()[i])) written.push_back(i);
  std::vector<c10::IValue> changed;
  for (size_t i = 0; i < count; ++i)
    changed.push_back(given_on_cpu(given[i], writes(schema.arguments()[i])));
  if (written.empty()) {
    for (size_t i = 0; i < count; ++i)  // the fallback does not know lists of optional tensors
      if (given[i].isList() && !given[i].isTensorList())
        (*stack)[stack->size() - count + i] = changed[i];
    at::native::cpu_fallback(op, stack, false);
    return;
  }
  for (size_t i = 0; i < count; ++i) (*stack)[stack->size() - count + i] = changed[i];
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (const size_t i : written) {
    if (!given[i].isTensor() || !given[i].toTensor().defined()) continue;
    const Tensor to = given[i].toTensor(), from = changed[i].toTensor();
    if (from.sizes() != to.sizes()) copy_from_and_resize(from, to);
  }
  const size_t results = schema.returns().size();
  for (size_t i = 0; i < results; ++i) {
    auto& value = (*stack)[stack->size() - results + i];
    if (value.isTensor())
      value = i < written.size() ? given[written[i]] : c10::IValue(value.toTensor().to(kDevice));
  }
}

REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &allocator);
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("resize_", resize);
  library.impl("convolution_overrideable", convolution);
  library.impl("_thnn_fused_lstm_cell", lstm_cell);
  library.impl("_local_scalar_dense", [](const Tensor& x) {
    return at::native::_local_scalar_dense_cpu(on_cpu(x));
  });
  library.impl("as_strided", [](const Tensor& x, IntArrayRef size, IntArrayRef stride,
                                std::optional<int64_t> offset) {
    return at::native::as_strided_tensorimpl(x, size, stride, offset);
  });
  library.impl("view", [](const Tensor& x, IntArrayRef size) { return at::native::view(x, size); });
  library.impl("_reshape_alias", [](const Tensor& x, IntArrayRef size, IntArrayRef stride) {
    return at::native::_reshape_alias(x, size, stride);
  });
  library.impl("unfold", [](const Tensor& x, int64_t axis, int64_t size, int64_t step) {
    return at::native::unfold(x, axis, size, step);
  });
  library.impl("set_.source_Storage_storage_offset",
               [](Tensor& x, at::Storage storage, int64_t offset, IntArrayRef size,
                  IntArrayRef stride) -> Tensor& {
                 return at::native::set_storage_cpu_(x, storage, offset, size, stride);
               });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("requested", [] { return counts.requested; });
  module.def("allocations", [] { return counts.allocations; });
  module.def("live", [] { return counts.live; });
  module.def("peak", [] { return counts.peak; });
  module.def("reset_peak", [] { counts.peak = counts.live; });
}
