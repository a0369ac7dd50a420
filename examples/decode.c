/* A .dca file to a picture that most viewers open: PGM or PPM, or PAM where there is alpha.
 *
 *   cmake -S csrc/decoder -B build/decoder && cmake --build build/decoder --parallel
 *   build/decoder/decode dca_fast/data/dca-s.safetensors photo.dca photo.ppm
 *   build/decoder/decode dca_fast/data/dca-s.safetensors photo.dca part.ppm 16 8 64 48
 *
 * The second form decodes a part: left, top, width and height in pixels.
 */
#include <stdio.h>
#include <stdlib.h>

#include "dca.h"

/* The content of a file in memory that free gives back; NULL if it cannot be read. */
static void* content_of(const char* path, size_t* size) {
  FILE* file = fopen(path, "rb");
  void* bytes = NULL;
  long end;
  if (file != NULL && fseek(file, 0, SEEK_END) == 0 && (end = ftell(file)) > 0 && fseek(file, 0, SEEK_SET) == 0) {
    *size = (size_t)end;
    bytes = malloc(*size);
    if (bytes != NULL && fread(bytes, 1, *size, file) != *size) {
      free(bytes);
      bytes = NULL;
    }
  }
  if (file != NULL) fclose(file);
  if (bytes == NULL) fprintf(stderr, "%s cannot be read\n", path);
  return bytes;
}

/* A number of the command line; what is none is larger than any picture. */
static uint32_t number_of(const char* text) {
  char* end;
  const unsigned long value = strtoul(text, &end, 10);
  return text[0] < '0' || text[0] > '9' || *end != 0 || value > 65535 ? UINT32_MAX : (uint32_t)value;
}

static dca_status decode(const dca_decoder* decoder, const void* bytes, size_t size, char** part, dca_info* info,
                         void** pixels, dca_error* error) {
  if (part == NULL) return dca_decode(decoder, bytes, size, info, pixels, error);
  return dca_decode_region(decoder, bytes, size, number_of(part[0]), number_of(part[1]), number_of(part[2]),
                           number_of(part[3]), info, pixels, error);
}

static int write_picture(FILE* file, const dca_info* info, unsigned char* pixels) {
  static const char* const types[] = {"GRAYSCALE", "GRAYSCALE_ALPHA", "RGB", "RGB_ALPHA"};
  const unsigned most = (1u << info->depth) - 1;
  const size_t size = info->row_bytes * info->height;
  size_t i;
  if (info->channels % 2 == 1) {
    fprintf(file, "P%d\n%u %u\n%u\n", info->channels == 1 ? 5 : 6, info->width, info->height, most);
  } else {
    fprintf(file, "P7\nWIDTH %u\nHEIGHT %u\nDEPTH %d\nMAXVAL %u\nTUPLTYPE %s\nENDHDR\n", info->width, info->height,
            info->channels, most, types[info->channels - 1]);
  }
  for (i = 0; info->depth == 16 && i < size; i += 2) { /* these files have the high byte first */
    const unsigned value = *(const uint16_t*)(pixels + i);
    pixels[i] = (unsigned char)(value >> 8);
    pixels[i + 1] = (unsigned char)value;
  }
  return fwrite(pixels, 1, size, file) == size;
}

int main(int count, char** arguments) {
  void *weights = NULL, *bytes = NULL, *pixels = NULL;
  size_t weights_size = 0, size = 0;
  dca_decoder* decoder = NULL;
  dca_info info;
  dca_error error;
  FILE* file = NULL;
  int failed = 1;
  if (count != 4 && count != 8) {
    fprintf(stderr, "usage: decode WEIGHTS.safetensors FILE.dca PICTURE.ppm [LEFT TOP WIDTH HEIGHT]\n");
    return 2;
  }
  weights = content_of(arguments[1], &weights_size);
  bytes = content_of(arguments[2], &size);
  if (weights != NULL && bytes != NULL) {
    if (dca_decoder_new(weights, weights_size, NULL, &decoder, &error) != DCA_OK ||
        decode(decoder, bytes, size, count == 8 ? arguments + 4 : NULL, &info, &pixels, &error) != DCA_OK) {
      fprintf(stderr, "error %d: %s\n", (int)error.status, error.message);
    } else if ((file = fopen(arguments[3], "wb")) == NULL || !write_picture(file, &info, (unsigned char*)pixels) ||
               fclose(file) != 0) {
      fprintf(stderr, "%s cannot be written\n", arguments[3]);
    } else {
      printf("%u x %u, %d channels of %d bits, quality %g\n", info.width, info.height, info.channels, info.depth,
             info.quality / 100.0);
      failed = 0;
    }
  }
  dca_free(pixels);
  dca_decoder_free(decoder);
  free(bytes);
  free(weights);
  return failed;
}
