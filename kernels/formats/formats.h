// The table of weight formats. A new format is one header beside this file and one row in formats.cpp.
#pragma once

#include <span>

#include "kernels/formats/format.h"

namespace kvfold {

std::span<const FormatInfo> weight_formats();

// Null when the GGUF id (or the name, such as "q4_0") is of no format in the table.
const FormatInfo* find_format(uint32_t gguf_id);
const FormatInfo* find_format(const char* name);
// REQUIRES: `type` is one of the enum's values.
const FormatInfo& format_info(WeightType type);

}  // namespace kvfold
