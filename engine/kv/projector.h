// Projectors: rows of one model's cache become rows of another's.
//
// A projector is a kind, two shapes, and named tensors; what it computes is its kind's. Kinds are listed in
// projector.cpp. Files are safetensors; ARCHITECTURE.md documents them.
//
// ridge, the linear map that ridge.h fits:
//
//     y = mean_out + scale_out * (up (down ((x - mean_in) * scale_in)))
//
//   ridge.mean_in, ridge.scale_in    [source width]
//   ridge.down                       [rank, source width]
//   ridge.up                         [target width, rank]
//   ridge.mean_out, ridge.scale_out  [target width]
//   ridge.weight                     [target width, source width], in place of up and down
//   ridge.first                      [target width], or none: what a text's first row becomes, whatever it
//                                    was. It is where attention goes that has nowhere to go (StreamingLLM:
//                                    Xiao et al. 2024, arXiv:2309.17453), unlike every other row.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/kv/alignment.h"
#include "engine/kv/flat_rows.h"
#include "engine/thread_pool.h"

namespace kvfold {

inline constexpr int kProjectorFileVersion = 1;

struct ProjectorTensor {
  std::vector<int64_t> shape;
  std::vector<float> data;
  bool half = false;  // F16 in files, else F32
};

// A model whose rows go in or come out.
struct ProjectorModel {
  std::string fingerprint;
  std::string name;
  CacheShape shape;
};

struct ProjectorData {
  std::string kind;
  ProjectorModel source, target;
  std::map<std::string, ProjectorTensor> tensors;
  // How it was made: the command, the corpus, what it reached on texts of its own.
  std::map<std::string, std::string> notes;

  // A tensor of that shape. Errors: there is none, or it has another shape; both are named.
  Result<const ProjectorTensor*> tensor(const std::string& name, const std::vector<int64_t>& shape) const;
  bool has(const std::string& name) const { return tensors.contains(name); }
};

class Projector {
 public:
  virtual ~Projector() = default;
  Projector(const Projector&) = delete;
  Projector& operator=(const Projector&) = delete;

  // The rows of one text in order, source [rows][row_width(source shape)], one for each target row
  // (alignment.h) -> target [rows][row_width(target shape)]. `first`: the first of them is the text's first
  // row. The same bits for any number of threads.
  virtual void apply(const float* source, int rows, bool first, float* target, ThreadPool& threads) const = 0;

  const ProjectorData& data() const { return data_; }
  int source_width() const { return row_width(data_.source.shape); }
  int target_width() const { return row_width(data_.target.shape); }

 protected:
  explicit Projector(ProjectorData data) : data_(std::move(data)) {}

 private:
  ProjectorData data_;
};

// Errors: an unknown kind (those known are listed); a tensor that is not known to the kind, or holds what is
// no number.
Status check_projector(const ProjectorData& data);
// Errors: as check_projector(); a tensor that is missing or has another shape.
Result<std::unique_ptr<Projector>> make_projector(ProjectorData data);

// A cache of the source model as the projector makes it for the target's tokens. The rows' origins name
// `origin`. Errors: the pool is exhausted; a value that its pages cannot hold. REQUIRES: every lane holds
// every row; the cache's rows are tokens.source.
Result<KvCache> project(const Projector& projector, const KvCache& source, const AlignedTokens& tokens,
                        const std::shared_ptr<PagePool>& pool, const std::string& origin,
                        ThreadPool& threads);

// Writes `path` whole or not at all. Errors: the file cannot be written.
Status save_projector(const ProjectorData& data, const std::string& path);
// Errors name the file and the key: not a projector file, another version, damaged (a checksum differs).
Result<ProjectorData> load_projector(const std::string& path);

}  // namespace kvfold
