/* Packed N:M weights: y[t, o] = sum_k W[o, k] x[t, k] + b[o], from C and from everything that can call C.
 *
 * The bytes of a packed weight are described in docs/packed.md. All functions may be called from any thread
 * at the same time. Those that can fail return 0, or one of the numbers below and a sentence in `message`
 * (cut to `message_bytes`, always closed by a zero; `message` may be null).
 *
 * The same library is an operator library of ONNX Runtime 1.17 and newer: register it with a session and
 * nodes `sparsify.NMLinear` run on it.
 */
#ifndef SPARSIFY_KERNELS_H
#define SPARSIFY_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define SPARSIFY_EXPORT __declspec(dllexport)
#else
#define SPARSIFY_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a function below does. */
#define SPARSIFY_ABI 1

enum { SPARSIFY_OK = 0, SPARSIFY_REFUSED = 1, SPARSIFY_NO_MEMORY = 2 };
enum { SPARSIFY_FLOAT32 = 0, SPARSIFY_INT8 = 1, SPARSIFY_INT4 = 2 };

typedef struct sparsify_nm {
  int64_t n, m;          /* N of M consecutive columns are stored */
  int64_t in_features;
  int64_t out_features;
  int64_t group;         /* columns that share a scale: 32, 64, 96 or 128; 0 for SPARSIFY_FLOAT32 */
  int64_t values;        /* SPARSIFY_FLOAT32, SPARSIFY_INT8 or SPARSIFY_INT4 */
} sparsify_nm;

SPARSIFY_EXPORT int32_t sparsify_abi(void);
SPARSIFY_EXPORT const char* sparsify_version(void);

/* The instruction set in use, chosen once: the best of this processor, or the one that the environment
 * variable SPARSIFY_ISA names. And all that could be chosen, best first, with blanks between. */
SPARSIFY_EXPORT const char* sparsify_isa(void);
SPARSIFY_EXPORT const char* sparsify_isas(void);

/* Bytes of a packed weight of these sizes, or -1. */
SPARSIFY_EXPORT int64_t sparsify_nm_bytes(const sparsify_nm* sizes, char* message, size_t message_bytes);

/* Reads a packed weight through: its length, and whether it is damaged in a way that can be seen. */
SPARSIFY_EXPORT int32_t sparsify_nm_check(const sparsify_nm* sizes, const uint8_t* packed,
                                          size_t packed_bytes, char* message, size_t message_bytes);

/* x [tokens, in_features], bias [out_features] or null, y [tokens, out_features], none overlapping y;
 * `packed` may lie at any address. Stays inside its buffers whatever the bytes of `packed` are. `threads` is
 * the most to use, the caller being one; 0 stands for as many as the machine has. */
SPARSIFY_EXPORT int32_t sparsify_nm_linear(const sparsify_nm* sizes, const uint8_t* packed,
                                           size_t packed_bytes, const float* bias, const float* x,
                                           size_t tokens, float* y, int32_t threads, char* message,
                                           size_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif
