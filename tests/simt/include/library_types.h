// Element types, as CUDA's libraries number them.
#pragma once

// NOLINTNEXTLINE(readability-identifier-naming): CUDA's names.
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16F = 2 };
using cudaDataType = cudaDataType_t;
