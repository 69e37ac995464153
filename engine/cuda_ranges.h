// Ranges that NVIDIA's profilers show: a pass by its phase, in it the layers, in these the operations.
// Nothing when no tool looks on.
#pragma once

#include <fmt/core.h>
#include <nvtx3/nvToolsExt.h>

namespace kvfold {

class NvtxRange {
 public:
  explicit NvtxRange(const char* name) { nvtxRangePushA(name); }
  ~NvtxRange() { nvtxRangePop(); }
  NvtxRange(const NvtxRange&) = delete;
  NvtxRange& operator=(const NvtxRange&) = delete;
};

class PassRanges {
 public:
  void begin(const char* phase) { nvtxRangePushA(phase); }
  void begin_layer(int layer) {
    end_layer();
    nvtxRangePushA(fmt::format("layer {}", layer).c_str());
    in_layer_ = true;
  }
  void end() {
    end_layer();
    nvtxRangePop();
  }

 private:
  void end_layer() {
    if (in_layer_) nvtxRangePop();
    in_layer_ = false;
  }

  bool in_layer_ = false;
};

}  // namespace kvfold
