// What XLA calls: a function with its C interface (its C++ one takes longer to compile than the kernels), and loops on
// XLA's own threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

#include "xla/ffi/api/c_api.h"

using Failure = XLA_FFI_Error*;  // nullptr: none

struct Buffer {
  void* data;
  const int64_t* dimensions;
  int64_t rank;
  int64_t size() const {
    int64_t n = 1;
    for (int64_t i = 0; i < rank; ++i) n *= dimensions[i];
    return n;
  }
};

struct Text {
  const char* data;
  int64_t size;
  char operator[](int64_t i) const { return data[i]; }
  bool operator==(const char* other) const {
    return size == static_cast<int64_t>(std::strlen(other)) && std::memcmp(data, other, size) == 0;
  }
};

struct Integers {
  const int32_t* data;
  int64_t size;
};

// Operands, results and attributes of a call, and the threads it may use. What is not there is thrown as its message.
class Call {
 public:
  explicit Call(XLA_FFI_CallFrame* frame) : frame_(frame) {}

  int64_t operands() const { return frame_->args.size; }
  Buffer operand(int64_t i) const { return buffer(frame_->args.args[i]); }
  Buffer result(int64_t i) const { return buffer(frame_->rets.rets[i]); }
  int64_t number(const char* name) const {
    return *static_cast<const int64_t*>(attribute<XLA_FFI_Scalar>(name).value);
  }
  Text text(const char* name) const {
    const auto& found = attribute<XLA_FFI_ByteSpan>(name);
    return {found.ptr, static_cast<int64_t>(found.len)};
  }
  Integers integers(const char* name) const {
    const auto& found = attribute<XLA_FFI_Array>(name);
    return {static_cast<const int32_t*>(found.data), static_cast<int64_t>(found.size)};
  }
  Failure refuse(const char* why) const {
    XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, why,
                                   XLA_FFI_Error_Code_INVALID_ARGUMENT};
    return frame_->api->XLA_FFI_Error_Create(&args);
  }
  int64_t threads() const {
    int64_t n = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args{XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, nullptr, frame_->ctx, &n};
    return succeeded(frame_->api->XLA_FFI_ThreadPool_NumThreads(&args)) ? std::max<int64_t>(1, n) : 1;
  }
  // Whether XLA took the task for one of its threads.
  bool schedule(XLA_FFI_Task* task, void* data) const {
    XLA_FFI_ThreadPool_Schedule_Args args{XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, nullptr, frame_->ctx, task,
                                          data};
    return succeeded(frame_->api->XLA_FFI_ThreadPool_Schedule(&args));
  }

 private:
  static Buffer buffer(const void* at) {
    const auto& x = *static_cast<const XLA_FFI_Buffer*>(at);
    return {x.data, x.dims, x.rank};
  }
  template <class Type>
  const Type& attribute(const char* name) const {
    for (int64_t i = 0; i < frame_->attrs.size; ++i) {
      const XLA_FFI_ByteSpan& found = *frame_->attrs.names[i];
      if (Text{found.ptr, static_cast<int64_t>(found.len)} == name)
        return *static_cast<const Type*>(frame_->attrs.attrs[i]);
    }
    throw "an attribute of the kernel is missing";
  }
  bool succeeded(Failure failure) const {
    if (failure == nullptr) return true;
    XLA_FFI_Error_Destroy_Args args{XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, nullptr, failure};
    frame_->api->XLA_FFI_Error_Destroy(&args);
    return false;
  }
  XLA_FFI_CallFrame* frame_;
};

// Blocks of a loop that threads take in turn; the last one to let go of it deletes it.
template <class Body>
struct Loop {
  const Body* body;  // alive while a block is unfinished, because the caller waits for all of them
  int64_t size, block, blocks;
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable ready;

  void work() {
    for (int64_t b; (b = next.fetch_add(1)) < blocks;) {
      for (int64_t i = b * block, end = std::min(size, i + block); i < end; ++i) (*body)(i);
      if (done.fetch_add(1) + 1 == blocks) {
        std::lock_guard<std::mutex> lock(mutex);
        ready.notify_all();
      }
    }
  }
};

// body(i) for i in 0..size. The caller works too and waits only for blocks that are already running elsewhere, so a
// busy pool delays nothing and nested calls cannot lock up.
template <class Body>
void parallel_for(const Call& call, int64_t size, const Body& body) {
  const int64_t threads = call.threads(), block = std::max<int64_t>(1, size / (8 * threads));
  auto loop = std::shared_ptr<Loop<Body>>(new Loop<Body>{&body, size, block, (size + block - 1) / block});
  const auto help = [](void* data) {
    auto* shared = static_cast<std::shared_ptr<Loop<Body>>*>(data);
    (*shared)->work();
    delete shared;
  };
  for (int64_t i = 1; i < std::min(threads, loop->blocks); ++i) {
    auto* shared = new std::shared_ptr<Loop<Body>>(loop);
    if (!call.schedule(help, shared)) delete shared;
  }
  loop->work();
  std::unique_lock<std::mutex> lock(loop->mutex);
  loop->ready.wait(lock, [&] { return loop->done.load() >= loop->blocks; });
}

// The function that is registered: answers which version of the interface it speaks, and computes when it is executed.
#define HANDLER(function)                                                                                              \
  extern "C" Failure handler(XLA_FFI_CallFrame* frame) {                                                               \
    if (frame->extension_start != nullptr && frame->extension_start->type == XLA_FFI_Extension_Metadata) {             \
      auto& asked = *reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)->metadata;                  \
      asked.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};            \
      asked.traits = 0;                                                                                                \
      return nullptr;                                                                                                  \
    }                                                                                                                  \
    const Call call(frame);                                                                                            \
    if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return call.refuse("a kernel is only executed");               \
    try {                                                                                                              \
      return function(call);                                                                                           \
    } catch (const char* why) {                                                                                        \
      return call.refuse(why);                                                                                         \
    }                                                                                                                  \
  }
