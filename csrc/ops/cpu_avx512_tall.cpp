// The kernels for AVX-512 once more, with tiles twice as tall: more sums in flight than a processor needs that issues
// one byte product a cycle, as many as one needs that issues two.
#define TILE_ROWS 8
#define KERNELS avx512_tall_kernels
#define KERNELS_NAME "avx512-tall"
#include "cpu_avx512.cpp"
