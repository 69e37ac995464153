// What projectors compute (engine/kv/projector.h), forward, and back to the gradients of their tensors.
//
// All kinds begin with the linear map, in units of deviations:
//
//     x = (source - mean_in) * scale_in      z = down x      y = up z
//
// mlp adds to y, over all of a row at once:
//
//     y += mlp.out silu(mlp.in z + mlp.in_bias)
//
//   mlp.in [hidden, rank], mlp.in_bias [hidden], mlp.out [target width, hidden]
//
// fuser adds to y layer by layer and for K and V apart, after Cache-to-Cache (Fu et al. 2025): g counts
// (layer, part), y_g are the y of all heads of one layer's K or V, and s_g the x of a window of source layers
// about as deep:
//
//     a = silu(fuser.in[g] [y_g; s_g] + fuser.in_bias[g])
//     y_g[head] += gate_g * 2 sigmoid(fuser.heads[g] a)[head] * (fuser.out[g] a)[head]
//
//   fuser.in [2 layers, hidden, heads * head_dim + window width], fuser.in_bias [2 layers, hidden],
//   fuser.heads [2 layers, heads, hidden], fuser.out [2 layers, heads * head_dim, hidden], fuser.gate [2
//   layers]
//
// gate_g is 1 where fuser.gate[g] > 0, else 0; in training a draw between them (Gumbel-sigmoid: Jang et al.
// 2017, arXiv:1611.01144). At last target = mean_out + scale_out * y, and a text's first row is ridge.first,
// if there is one.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/kv/projector.h"
#include "engine/train/gemm.h"

namespace kvfold {

// What the way back needs of the way forward.
struct ProjectorActivations {
  int rows = 0;
  std::vector<char> first;     // [rows]
  std::vector<float> x, z, y;  // [rows][source width], [rows][rank], [rows][target width]
  std::vector<float> hidden,
      active;  // [rows][hidden], of fuser [2 layers][rows][hidden]: before and behind silu
  std::vector<float> input, feature, head;  // of fuser: [2 layers][rows][inputs], [..][block], [..][heads]
  std::vector<float> gates;                 // of fuser: [2 layers]
};

// A projector's tensors, checked once.
class ProjectorPass {
 public:
  // Errors: a tensor is missing or has a shape that does not fit; ridge.weight in place of down and up.
  static Result<ProjectorPass> create(const ProjectorData& data);

  // rows = first.size() rows of one text or several, source [rows][source width] -> target [rows][target
  // width]. `gates`: of fuser, [2 layers]; empty: those of its tensors.
  void forward(const ProjectorData& data, Gemm& gemm, const float* source, const std::vector<char>& first,
               const std::vector<float>& gates, ProjectorActivations& a, float* target) const;

  // Adds to gradients, by the tensor's name; tensors without an entry get none. `a` as forward() left it.
  using Gradients = std::map<std::string, float*>;
  void backward(const ProjectorData& data, Gemm& gemm, const float* target_gradient, ProjectorActivations& a,
                const Gradients& gradients) const;

  int64_t rank() const { return rank_; }
  int64_t hidden() const { return hidden_; }
  int64_t inputs() const { return inputs_; }  // of a fuser's hidden layer
  // Where the window of source layers of a target layer begins in a flat row, and how wide it is.
  int64_t window_begin(int target_layer) const;
  int64_t window_width() const { return inputs_ - block_; }

 private:
  Status check(const ProjectorData& data);
  void mlp(const ProjectorData& data, Gemm& gemm, ProjectorActivations& a) const;
  void fuse(const ProjectorData& data, Gemm& gemm, ProjectorActivations& a) const;
  void mlp_back(const ProjectorData& data, Gemm& gemm, const std::vector<float>& dy, std::vector<float>& dz,
                ProjectorActivations& a, const Gradients& gradients) const;
  void fuse_back(const ProjectorData& data, Gemm& gemm, std::vector<float>& dy, ProjectorActivations& a,
                 const Gradients& gradients) const;

  CacheShape source_, target_;
  int64_t in_ = 0, out_ = 0, rank_ = 0, hidden_ = 0, inputs_ = 0;
  int64_t block_ = 0;  // of one target layer's K or V
  bool mlp_ = false, fuser_ = false;
};

}  // namespace kvfold
