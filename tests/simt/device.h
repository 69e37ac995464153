// The one header that kernels include where they are compiled for the host.
#pragma once

#include "tests/simt/include/cublas_v2.h"
#include "tests/simt/include/cuda_runtime.h"
