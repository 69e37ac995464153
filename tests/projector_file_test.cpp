// Projector files and checkpoints of training that are damaged, cut, or lie: each is refused with one
// printable line that names the file, and nothing is read that is not there. What is refused leaves a
// training as it was.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>

#include "engine/kv/projector.h"
#include "engine/train/trainer.h"
#include "tests/gaussian_tensor.h"
#include "tests/signed_file.h"
#include "tests/temporary.h"

namespace kvfold::testing {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
const std::string kEscape = "\x1B[2J\n\x07";

// From 3 layers x 1 head x 4 to 2 layers x 2 heads x 2, of rank 3, with a residual of `kind`.
ProjectorData small_projector(const std::string& kind) {
  ProjectorData data{kind, {"aa", "A", {3, 1, 4}}, {"bb", "B", {2, 2, 2}}, {}, {{"command", "a \"b\"\n"}}};
  constexpr int64_t kIn = 24, kOut = 16, kRank = 3, kHidden = 2, kGroups = 4, kBlock = 4, kInputs = 4 + 8;
  auto& t = data.tensors;
  t["ridge.mean_in"] = gaussian_tensor({kIn}, 1);
  t["ridge.scale_in"] = gaussian_tensor({kIn}, 2);
  t["ridge.mean_out"] = gaussian_tensor({kOut}, 3);
  t["ridge.scale_out"] = gaussian_tensor({kOut}, 4);
  t["ridge.down"] = gaussian_tensor({kRank, kIn}, 5);
  t["ridge.up"] = gaussian_tensor({kOut, kRank}, 6);
  t["ridge.first"] = gaussian_tensor({kOut}, 7);
  if (kind == "mlp") {
    t["mlp.in"] = gaussian_tensor({kHidden, kRank}, 8);
    t["mlp.in_bias"] = gaussian_tensor({kHidden}, 9);
    t["mlp.out"] = gaussian_tensor({kOut, kHidden}, 10);
  } else if (kind == "fuser") {
    t["fuser.in"] = gaussian_tensor({kGroups, kHidden, kInputs}, 11);
    t["fuser.in_bias"] = gaussian_tensor({kGroups, kHidden}, 12);
    t["fuser.heads"] = gaussian_tensor({kGroups, 2, kHidden}, 13);
    t["fuser.out"] = gaussian_tensor({kGroups, kBlock, kHidden}, 14);
    t["fuser.gate"] = gaussian_tensor({kGroups}, 15);
  }
  return data;
}

std::string saved(const TemporaryFolder& folder, const std::string& kind) {
  EXPECT_TRUE(save_projector(small_projector(kind), folder.file("good")).ok());
  return TemporaryFolder::read(folder.file("good"));
}

// As a program opens it: the message, with the file before it; "" where it is taken.
std::string open_projector(const std::string& path) {
  Result<ProjectorData> data = load_projector(path);
  if (!data.ok()) return data.status().message();
  const auto made = make_projector(std::move(*data));
  if (!made.ok()) return path + ": " + made.status().message();
  // What is taken can be used.
  ThreadPool threads(1);
  const std::vector<float> rows(static_cast<size_t>(2 * (*made)->source_width()), 1.0F);
  std::vector<float> out(static_cast<size_t>(2 * (*made)->target_width()));
  (*made)->apply(rows.data(), 2, true, out.data(), threads);
  return "";
}

class EveryKind : public ::testing::TestWithParam<const char*> {};

TEST_P(EveryKind, CutAnywhereIsRefused) {
  const TemporaryFolder folder;
  const std::string good = saved(folder, GetParam());
  ASSERT_EQ(open_projector(folder.file("good")), "");
  ASSERT_EQ(open_projector(folder.write("same", SignedFile::parse(good).build())), "");
  for (size_t size = 0; size < good.size(); ++size) {
    const std::string path = folder.write("bad", good.substr(0, size));
    EXPECT_EQ(wrong_with(open_projector(path), path, {}), "") << size;
  }
}

TEST_P(EveryKind, AFlippedBitAnywhereIsRefused) {
  const TemporaryFolder folder;
  const std::string good = saved(folder, GetParam());
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1 << at % 8);
    const std::string path = folder.write("bad", bad);
    // Spaces between the header and the data say nothing; another white space is not refused.
    if (open_projector(path).empty()) {
      EXPECT_EQ(good[at], ' ') << at;
      continue;
    }
    EXPECT_EQ(wrong_with(open_projector(path), path, {}), "") << at;
  }
}

TEST_P(EveryKind, WithoutAKeyOrATensorIsRefused) {
  const TemporaryFolder folder;
  const SignedFile good = SignedFile::parse(saved(folder, GetParam()));
  for (const auto& [key, value] : good.metadata) {
    SignedFile bad = good;
    bad.metadata.erase(key);
    const std::string path = folder.write("bad", bad.build());
    if (key.starts_with("note.")) {
      EXPECT_EQ(open_projector(path), "");
    } else {
      EXPECT_EQ(wrong_with(open_projector(path), path, {"'" + key + "'"}), "") << key;
    }
  }
  for (const auto& [name, tensor] : good.tensors) {
    SignedFile bad = good;
    bad.tensors.erase(name);
    const std::string path = folder.write("bad", bad.build());
    if (name == "ridge.first") {
      EXPECT_EQ(open_projector(path), "");
    } else {
      EXPECT_EQ(wrong_with(open_projector(path), path, {name}), "") << name;
    }
  }
}

TEST_P(EveryKind, TensorsOfAnotherTypeShapeOrWithoutNumbersAreRefusedByName) {
  const TemporaryFolder folder;
  const SignedFile good = SignedFile::parse(saved(folder, GetParam()));
  for (const auto& [name, tensor] : good.tensors) {
    const auto refused = [&, tensor_name = name](const std::function<void(SignedFile::Tensor&)>& change,
                                                 const std::string& what) {
      SignedFile bad = good;
      change(bad.tensors.at(tensor_name));
      const std::string path = folder.write("bad", bad.build());
      EXPECT_EQ(wrong_with(open_projector(path), path, {}), "") << tensor_name << " " << what;
    };
    for (const char* dtype : {"I32", "U32"}) refused([&](auto& t) { t.dtype = dtype; }, dtype);
    refused(
        [](auto& t) {
          t.dtype = "F64";
          t.bytes += t.bytes;
        },
        "F64");
    refused(
        [](auto& t) {
          t.dtype = "BF16";
          t.bytes.resize(t.bytes.size() / 2);
        },
        "BF16");
    refused([](auto& t) { t.shape.push_back(1); }, "one more dimension");
    refused([](auto& t) { t.shape.insert(t.shape.begin(), 1); }, "one dimension before");
    refused(
        [](auto& t) {
          t.shape[0] = 0;
          t.bytes.clear();
        },
        "no elements");
    refused(
        [](auto& t) {
          t.shape.push_back(0);
          t.bytes.clear();
        },
        "a dimension of none");
    refused(
        [](auto& t) {
          t.shape = {int64_t{1} << 60, 0};
          t.bytes.clear();
        },
        "a huge dimension beside none");
    for (const float number : {kNan, kInfinity, -kInfinity}) {
      SignedFile bad = good;
      const size_t last = tensor.bytes.size() / sizeof(float) - 1;
      bad.set(name, last, number);
      const std::string path = folder.write("bad", bad.build());
      EXPECT_EQ(wrong_with(open_projector(path), path,
                           {"tensor '" + name + "'", "element " + std::to_string(last)}),
                "");
    }
  }
}
INSTANTIATE_TEST_SUITE_P(ProjectorFile, EveryKind, ::testing::Values("ridge", "mlp", "fuser"),
                         [](const auto& kind) { return std::string(kind.param); });

const Lie kProjectorLies[] = {
    metadata_lie("version_2", "kvfold_projector", "2", {"found version 2", "expected 1"}),
    metadata_lie("version_none", "kvfold_projector", ""),
    metadata_lie("version_escape", "kvfold_projector", kEscape),
    metadata_lie("kind_unknown", "kind", "magic", {"magic", "ridge, mlp, fuser"}),
    metadata_lie("kind_escape", "kind", kEscape, {"unknown kind"}),
    {"kind_without_its_tensors", [](SignedFile& f) { f.metadata["kind"] = "mlp"; }, {"mlp.in_bias"}},
    metadata_lie("layers_0", "source.layers", "0", {"'0'", "[1, 4096]"}),
    metadata_lie("layers_negative", "source.layers", "-1"),
    metadata_lie("layers_fraction", "source.layers", "1.5"),
    metadata_lie("layers_text", "source.layers", "three"),
    metadata_lie("layers_2_64", "source.layers", "18446744073709551616"),
    metadata_lie("layers_too_many", "target.layers", "4097"),
    metadata_lie("heads_0", "target.kv_heads", "0"),
    metadata_lie("heads_too_many", "target.kv_heads", "1025"),
    metadata_lie("head_dim_0", "source.head_dim", "0"),
    metadata_lie("head_dim_too_large", "source.head_dim", "65537"),
    metadata_lie("head_dim_list", "source.head_dim", "[4]"),
    metadata_lie("head_dim_deep", "source.head_dim", std::string(100'000, '[')),
    {"product_of_sizes",
     [](SignedFile& f) {
       f.metadata["source.layers"] = "4096";
       f.metadata["source.kv_heads"] = "1024";
       f.metadata["source.head_dim"] = "65536";
     },
     {"source", "beyond what an index can hold"}},
    {"sizes_of_another_model",
     [](SignedFile& f) { f.metadata["target.head_dim"] = "3"; },
     {"ridge.mean_out", "[16]", "[24]"}},
    {"checksums_no_json",
     [](SignedFile& f) { f.sign_tensors = false, f.metadata["checksums"] = "{"; },
     {"checksums"}},
    {"checksums_list",
     [](SignedFile& f) { f.sign_tensors = false, f.metadata["checksums"] = "[]"; },
     {"checksum"}},
    {"checksums_escape",
     [](SignedFile& f) {
       f.sign_tensors = false;
       f.metadata["checksums"] = R"({"ridge.down": "\u001b[2J\n"})";
     },
     {"checksum"}},
    {"checksum_escape",
     [](SignedFile& f) { f.sign_metadata = false, f.metadata["checksum"] = kEscape; },
     {"checksum"}},
    {"tensor_of_none_of_the_kind",
     [](SignedFile& f) {
       f.tensors["other"] = {"F32", {1}, std::string(4, '\0')};
     },
     {"'other'", "ridge"}},
    {"tensor_of_no_ridge",
     [](SignedFile& f) {
       f.tensors["ridge.bias"] = {"F32", {1}, std::string(4, '\0')};
     },
     {"projector: tensor 'ridge.bias' is none of those of a ridge"}},
    {"weight_beside_its_factors",
     [](SignedFile& f) {
       f.tensors["ridge.weight"] = {"F32", {16, 24}, std::string(size_t{4} * 16 * 24, '\0')};
     },
     {"projector: tensor 'ridge.down' stands beside 'ridge.weight', which takes its place"}},
    {"tensor_named_escape",
     [](SignedFile& f) {
       f.tensors[kEscape] = {"F32", {1}, std::string(4, '\0')};
     },
     {"tensor"}},
    {"tensor_named_escape_of_another_type",
     [](SignedFile& f) {
       f.tensors[kEscape] = {"I32", {1}, std::string(4, '\0')};
     },
     {"tensor"}},
    {"ranks_differ",
     [](SignedFile& f) {
       f.tensors.at("ridge.down").shape = {2, 24};
       f.tensors.at("ridge.down").bytes.resize(2 * 24 * 4);
     },
     {"ridge.up", "[16,3]", "[16,2]"}},
    {"transposed",
     [](SignedFile& f) {
       f.tensors.at("ridge.down").shape = {24, 3};
     },
     {"ridge.down"}},
    {"without_dimensions",
     [](SignedFile& f) {
       f.tensors.at("ridge.down") = {"F32", {}, std::string(4, '\0')};
     },
     {"projector: tensor 'ridge.down': found the shape [], expected [0,24]"}},
    {"rank_0",
     [](SignedFile& f) {
       f.tensors.at("ridge.down") = {"F32", {0, 24}, ""};
       f.tensors.at("ridge.up") = {"F32", {16, 0}, ""};
     },
     {"ridge.down", "no components"}},
};

class LyingProjector : public ::testing::TestWithParam<Lie> {};

TEST_P(LyingProjector, IsRefused) {
  const TemporaryFolder folder;
  SignedFile file = SignedFile::parse(saved(folder, "ridge"));
  GetParam().tell(file);
  const std::string path = folder.write("lie", file.build());
  EXPECT_EQ(wrong_with(open_projector(path), path, GetParam().words), "");
}
INSTANTIATE_TEST_SUITE_P(Metadata, LyingProjector, ::testing::ValuesIn(kProjectorLies),
                         [](const auto& lie) { return std::string(lie.param.name); });

// ---- checkpoints of training ----

class TrainingCheckpoint : public ::testing::Test {
 protected:
  TrainingCheckpoint() : pool_(1), gemm_(pool_, *select_cpu_kernels()) {}

  std::unique_ptr<ProjectorTrainer> trainer() {
    TrainerOptions options;
    options.kind = "mlp";
    options.hidden = 2;
    options.steps = 4;
    return std::move(*ProjectorTrainer::create(small_projector("ridge"), options, gemm_));
  }
  // A checkpoint behind an evaluation.
  std::string saved_checkpoint() {
    const auto begun = trainer();
    begun->note(3.5);
    EXPECT_TRUE(begun->save(folder_.file("good"), kIdentity).ok());
    return TemporaryFolder::read(folder_.file("good"));
  }
  // The message of the refusal; the training is as it was.
  std::string load(const std::string& path) {
    const auto fresh = trainer();
    const Status status = fresh->load(path, kIdentity);
    if (status.ok()) return "";
    EXPECT_EQ(fresh->state().step, 0);
    EXPECT_TRUE(fresh->state().curve.empty());
    const auto expected = trainer()->best().tensors;
    for (const auto& [name, tensor] : fresh->best().tensors)
      EXPECT_EQ(tensor.data, expected.at(name).data) << name;
    return status.message();
  }

  static constexpr const char* kIdentity = "this one";
  TemporaryFolder folder_;
  ThreadPool pool_;
  Gemm gemm_;
};

TEST_F(TrainingCheckpoint, CutAnywhereIsRefused) {
  const std::string good = saved_checkpoint();
  ASSERT_EQ(load(folder_.file("good")), "");
  ASSERT_EQ(load(folder_.write("same", SignedFile::parse(good).build())), "");
  for (size_t size = 0; size < good.size(); ++size) {
    const std::string path = folder_.write("bad", good.substr(0, size));
    ASSERT_EQ(wrong_with(load(path), path, {}), "") << size;
  }
}

TEST_F(TrainingCheckpoint, AFlippedBitAnywhereIsRefused) {
  const std::string good = saved_checkpoint();
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1 << at % 8);
    const std::string path = folder_.write("bad", bad);
    const std::string message = load(path);
    if (message.empty()) {
      ASSERT_EQ(good[at], ' ') << at;
    } else {
      ASSERT_EQ(wrong_with(message, path, {}), "") << at;
    }
  }
}

TEST_F(TrainingCheckpoint, WithoutAKeyOrATensorIsRefused) {
  const SignedFile good = SignedFile::parse(saved_checkpoint());
  for (const auto& entry : good.metadata) {
    SignedFile bad = good;
    bad.metadata.erase(entry.first);
    const std::string path = folder_.write("bad", bad.build());
    EXPECT_EQ(wrong_with(load(path), path, {"'" + entry.first + "'"}), "");
  }
  for (const auto& entry : good.tensors) {
    SignedFile bad = good;
    bad.tensors.erase(entry.first);
    const std::string path = folder_.write("bad", bad.build());
    EXPECT_EQ(wrong_with(load(path), path, {"tensor '" + entry.first + "'"}), "");
  }
}

TEST_F(TrainingCheckpoint, TensorsThatDoNotFitOrHoldNoNumbersAreRefusedByName) {
  const SignedFile good = SignedFile::parse(saved_checkpoint());
  for (const auto& [name, tensor] : good.tensors) {
    const auto refused = [&, tensor_name = name](const std::function<void(SignedFile&)>& change) {
      SignedFile bad = good;
      change(bad);
      const std::string path = folder_.write("bad", bad.build());
      EXPECT_EQ(wrong_with(load(path), path, {"tensor '" + tensor_name + "'"}), "");
    };
    const std::string key = name;
    refused([&](SignedFile& f) { f.tensors.at(key).dtype = "I32"; });
    refused([&](SignedFile& f) { f.tensors.at(key).shape.push_back(1); });
    refused([&](SignedFile& f) {
      f.tensors.at(key).shape[0] += 1;
      f.tensors.at(key).bytes += std::string(4, '\0');
    });
    refused([&](SignedFile& f) { f.tensors.at(key) = {"F32", {int64_t{1} << 60, 0}, ""}; });
    for (const float number : {kNan, kInfinity, -kInfinity})
      refused([&](SignedFile& f) { f.set(key, 1, number); });
    // The square of a gradient: its root is taken.
    if (name.starts_with("square.")) refused([&](SignedFile& f) { f.set(key, 0, -1e-9F); });
  }
}

const Lie kCheckpointLies[] = {
    metadata_lie("version_2", "kvfold_training", "2", {"expected 1"}),
    metadata_lie("version_escape", "kvfold_training", kEscape),
    metadata_lie("identity_other", "identity", "that one", {"that one", "this one"}),
    metadata_lie("identity_escape", "identity", kEscape, {"another training's"}),
    metadata_lie("identity_huge", "identity", std::string(1 << 20, 'x'), {"another training's"}),
    metadata_lie("step_negative", "step", "-1"),
    metadata_lie("step_2_31", "step", "2147483648"),
    metadata_lie("step_fraction", "step", "1.0"),
    metadata_lie("step_text", "step", "\"1\""),
    metadata_lie("best_step_2_64", "best_step", "18446744073709551616"),
    metadata_lie("stale_negative", "stale", "-5"),
    metadata_lie("best_text", "best", "low"),
    metadata_lie("best_empty", "best", ""),
    metadata_lie("best_nan", "best", "nan"),
    metadata_lie("best_infinite", "best", "0x1p99999"),
    metadata_lie("best_with_more_behind", "best", "1.5 \x1B[2J"),
    metadata_lie("curve_object", "curve", "{\"a\": 1, \"b\": 2}"),
    metadata_lie("curve_number", "curve", "7"),
    metadata_lie("curve_of_texts", "curve", "[0, \"x\"]"),
    metadata_lie("curve_of_null", "curve", "[0, null]"),
    metadata_lie("curve_odd", "curve", "[0, 3.5, 1]"),
    metadata_lie("curve_no_json", "curve", "[0, "),
    metadata_lie("curve_deep", "curve", std::string(100'000, '[')),
    {"curve_without_best",  // which there is where something was evaluated
     [](SignedFile& f) {
       std::erase_if(f.tensors, [](const auto& t) { return t.first.starts_with("best."); });
     },
     {"tensor 'best."}},
    {"best_without_curve", [](SignedFile& f) { f.metadata["curve"] = "[]"; }, {"tensors, expected"}},
    {"one_tensor_more",
     [](SignedFile& f) {
       f.tensors["value.other"] = {"F32", {1}, std::string(4, '\0')};
     },
     {"tensors, expected"}},
    {"checksums_list",
     [](SignedFile& f) { f.sign_tensors = false, f.metadata["checksums"] = "[]"; },
     {"checksum"}},
    {"checksums_no_json",
     [](SignedFile& f) { f.sign_tensors = false, f.metadata["checksums"] = "}"; },
     {"checksums"}},
    {"checksums_of_null",
     [](SignedFile& f) { f.sign_tensors = false, f.metadata["checksums"] = "null"; },
     {"checksum"}},
    {"checksum_escape",
     [](SignedFile& f) { f.sign_metadata = false, f.metadata["checksum"] = kEscape; },
     {"checksum"}},
};

class LyingCheckpoint : public TrainingCheckpoint, public ::testing::WithParamInterface<Lie> {};

TEST_P(LyingCheckpoint, IsRefused) {
  SignedFile file = SignedFile::parse(saved_checkpoint());
  GetParam().tell(file);
  const std::string path = folder_.write("lie", file.build());
  EXPECT_EQ(wrong_with(load(path), path, GetParam().words), "");
}
INSTANTIATE_TEST_SUITE_P(Metadata, LyingCheckpoint, ::testing::ValuesIn(kCheckpointLies),
                         [](const auto& lie) { return std::string(lie.param.name); });

// A training begins from any of the files above no more than a projector is made of them.
TEST_F(TrainingCheckpoint, TrainingDoesNotBeginFromWhatIsNoProjector) {
  TrainerOptions options;
  options.kind = "mlp";
  const auto refused = [&](const std::function<void(ProjectorData&)>& change) {
    ProjectorData data = small_projector("ridge");
    change(data);
    const auto made = ProjectorTrainer::create(std::move(data), options, gemm_);
    return made.ok() ? "" : made.status().message();
  };
  EXPECT_NE(refused([](ProjectorData& d) { d.tensors["ridge.up"].data[3] = kNan; }).find("element 3"),
            std::string::npos);
  EXPECT_NE(
      refused([](ProjectorData& d) { d.tensors["fuser.in"] = d.tensors["ridge.up"]; }).find("'fuser.in'"),
      std::string::npos);
  EXPECT_NE(refused([](ProjectorData& d) { d.tensors.erase("ridge.down"); }).find("'ridge.down'"),
            std::string::npos);
  EXPECT_NE(refused([](ProjectorData& d) { d.kind = kEscape; }).find("the kind"), std::string::npos);
}

}  // namespace
}  // namespace kvfold::testing
