/* Decoder of .dca pictures as a C library: from the bytes of a file and a weights file to pixels, without Python.
 *
 *   dca_decoder* decoder;
 *   dca_info info;
 *   void* pixels;
 *   if (dca_decoder_new(weights, weights_size, NULL, &decoder, &error) == DCA_OK &&
 *       dca_decode(decoder, file, file_size, &info, &pixels, &error) == DCA_OK) {
 *     ...info.height rows of info.width * info.channels samples...
 *     dca_free(pixels);
 *   }
 *   dca_decoder_free(decoder);
 *
 * examples/decode.c is a whole program. Pixels are those of dca_fast.Codec.decode, bit for bit, on every machine.
 * docs/guide/c_library.md says how to build it.
 */
#ifndef DCA_H
#define DCA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#ifdef DCA_BUILD
#define DCA_API __declspec(dllexport)
#else
#define DCA_API
#endif
#elif defined(__GNUC__)
#define DCA_API __attribute__((visibility("default")))
#else
#define DCA_API
#endif

/* What went wrong. Those of files mean what the exceptions of dca_fast/errors.py mean. */
typedef enum dca_status {
  DCA_OK = 0,
  DCA_NOT_A_DCA_FILE = 1,      /* the first bytes are not those of a .dca file */
  DCA_UNSUPPORTED_VERSION = 2, /* another format, or flags and sections that this version does not know */
  DCA_UNKNOWN_MODEL = 3,       /* the file was made with other weights, or the decoder has none */
  DCA_TRUNCATED_STREAM = 4,    /* the file ends too early */
  DCA_CORRUPT_STREAM = 5,      /* bytes were changed, or decode to something impossible */
  DCA_LIMIT_EXCEEDED = 6,      /* more pixels or bytes than the limits allow */
  DCA_BAD_WEIGHTS = 7,         /* the weights file is damaged, or of another kind */
  DCA_BAD_ARGUMENT = 8,        /* an argument of a function makes no sense */
  DCA_NOT_AVAILABLE = 9,       /* this machine cannot run the instruction set that was asked for */
  DCA_OUT_OF_MEMORY = 10       /* the picture needs more memory than there is */
} dca_status;

/* Filled in by whatever fails; may be NULL where a function takes one. */
typedef struct dca_error {
  dca_status status;
  char message[256]; /* UTF-8, ends with a zero byte */
} dca_error;

/* Bytes inside the memory of a file that the caller holds; data is NULL if there are none. */
typedef struct dca_bytes {
  const uint8_t* data;
  size_t size;
} dca_bytes;

/* What a file says about its picture. */
typedef struct dca_info {
  uint32_t width, height; /* 1 to 65535 */
  int channels;           /* samples of a pixel: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha; alpha is straight */
  int depth;              /* bits of a sample: 8 as uint8_t, 16 as uint16_t of this machine */
  int quality;            /* hundredths, 0 to 10000 */
  int exact;              /* 1: coded without a model; any decoder reads it */
  uint8_t model_id[4];    /* of the weights that the file needs; zeros if exact */
  size_t graphic_blocks;  /* of 16 x 16 pixels, that a picture with a model holds in exact colours */
  size_t row_bytes;       /* width * channels * depth / 8 */
  dca_bytes icc, exif, xmp; /* as they were; the orientation in EXIF is not yet applied to the pixels */
} dca_info;

typedef struct dca_decoder dca_decoder;

/* How a decoder works. Zeros mean the default. */
typedef struct dca_options {
  int threads;         /* 0: one for each processor. The threads are one pool of the process */
  uint64_t max_pixels; /* larger pictures are refused; 0: 2^28 */
  const char* isa;     /* NULL: the fastest instruction set here. "scalar", "avx2", ...; changes no pixel. It is one of
                          the process: do not ask for another one while a picture is decoded */
} dca_options;

/* The version of the format that this library reads. */
DCA_API int dca_format_version(void);

/* Makes a decoder of a weights file, such as dca_fast/data/dca-s.safetensors. The memory may go afterwards.
 * All tensors of the encoder may be left out of it together. weights NULL: the decoder reads exact files alone. options
 * may be NULL. A decoder may be used by several threads at once. */
DCA_API dca_status dca_decoder_new(const void* weights, size_t size, const dca_options* options, dca_decoder** decoder,
                                   dca_error* error);
DCA_API void dca_decoder_free(dca_decoder* decoder);

/* The four bytes that name the model in a file; zeros without weights. */
DCA_API void dca_decoder_model(const dca_decoder* decoder, uint8_t model_id[4]);

/* Verifies header, sections and checksum, and decodes nothing. No limit of pixels applies. */
DCA_API dca_status dca_inspect(const void* file, size_t size, dca_info* info, dca_error* error);

/* Decodes to memory of its own, which dca_free gives back; rows follow each other without gaps. info may be NULL. */
DCA_API dca_status dca_decode(const dca_decoder* decoder, const void* file, size_t size, dca_info* info, void** pixels,
                              dca_error* error);

/* Decodes to a small picture with a pixel for `reduce` by `reduce`, 1, 2, 4, 8 or 16; its sides, rounded upwards, stand
 * in info. At 8 and 16 it comes from the latent where the weights have a layer for it, which takes some 60 % of the
 * time; else it is the mean of decoded pixels (docs/guide/large.md). */
DCA_API dca_status dca_decode_preview(const dca_decoder* decoder, const void* file, size_t size, int reduce,
                                      dca_info* info, void** pixels, dca_error* error);

/* Decodes a part of the picture: width x height pixels from (left, top) on, counted from 0; the crop of the whole one,
 * with its size in info. Of pictures from about eight megapixels on only the tiles are decoded, and verified, that the
 * part depends on; of smaller ones all symbols, and only these pixels are made. Alpha and exact files are decoded
 * whole. DCA_BAD_ARGUMENT for a region that has no pixels, or is not within the picture. */
DCA_API dca_status dca_decode_region(const dca_decoder* decoder, const void* file, size_t size, uint32_t left,
                                     uint32_t top, uint32_t width, uint32_t height, dca_info* info, void** pixels,
                                     dca_error* error);

/* Decodes to info.height rows of the caller, `stride` bytes from one to the next, at least info.row_bytes and a whole
 * number of samples, for which pixels is aligned. What fails has written nothing,
 * but DCA_OUT_OF_MEMORY in the middle of a large picture. */
DCA_API dca_status dca_decode_to(const dca_decoder* decoder, const void* file, size_t size, void* pixels, size_t stride,
                                 dca_error* error);

DCA_API void dca_free(void* pixels);

#ifdef __cplusplus
}
#endif
#endif
