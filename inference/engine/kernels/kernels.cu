// The operations of ops.py as CUDA kernels, for float16 (BF16 0) or bfloat16 (BF16 1) weights.
//
// Compiled at run time by NVRTC, without headers. Runs from sm_75 (a T4) on; bfloat16 from sm_80.
// cuda_ops.py launches them. Shapes are as in ops.py: B rows of N queries, D residual width, H query
// heads and G key/value heads of width W = 128, K terms and M outputs of a product, F outputs of gate
// and as many of up, V codes, sound (B, T, C). `h` marks a half_t, `i` an int64; the rest is float.
//
// kernel            mirrors of ops.py        grid         block     in -> out
// norm_linear_1     norm_linear, B <= 8      M/16         256       x (B,K), h (M,K) -> h (B,M)
// norm_gated_1      norm_gated, B <= 8       2F/16        256       x (B,K), h (2F,K) -> h (B,F)
// linear_add_1      linear_add, B <= 8       M/16         256       h (B,K), h (M,K), x (B,M) -> (B,M)
// linear_add_2, _4  linear_add, B <= 16, 32  M/16         256       the same
// rms_norm          rms_norm, for cuBLAS     B            256       x (B,D) -> h (B,D)
// silu_and_mul      norm_gated after cuBLAS  BF/8/256     256       h (B,2F) -> h (B,F)
// add               linear_add after cuBLAS  BM/4/256     256       x (B,M), h (B,M) -> (B,M)
// attend_1          attend, N = 1            G, B         128, 512  h (B,(H+2G)W) -> h (B,HW)
// attend_2          attend, N = 2            G, B         128, 512  h (2B,(H+2G)W) -> h (2B,HW)
// store_kv          attend, N > 2: cache     BN           256       h (BN,(H+2G)W) -> keys, values
// attend_stored     attend, N > 2: the rest  G, BN        128       h (BN,(H+2G)W) -> h (BN,HW)
// sample            sample, V <= 4096        B            512       h (B,V) -> i (B)
// embed             embed                    B            256       h (V,D), i (B) -> (B,D)
// frame_embed       frame_embed              D/256, B     256       i (B,16), h tables -> (B,D)
// snake             snake, float16           BTC/8/256    256       h (B,T,C) -> h (B,T,C)

typedef unsigned short half_t;       // the bits of one weight
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int WARP_BITS = 5;
constexpr int WARP = 1 << WARP_BITS;  // lanes
constexpr int WIDTH = 128;           // of a head
constexpr int SHARE = 2;             // query heads that share a key/value head
constexpr int CODEBOOKS = 16;        // codes in a frame
constexpr int MIN_FRAMES = 2;        // sampler.py's: the end can't come sooner
#define SCALE 0.08838834764831845f   // of a score: 1 / sqrt(WIDTH)
#define NEVER (-1e30f)               // a score that no softmax sees
#define MINUS_INFINITY __int_as_float(0xff800000)

static_assert(sizeof(half_t) == 2 && sizeof(uint4) == 8 * sizeof(half_t), "16 bytes are 8 weights");
static_assert(WIDTH == 4 * WARP, "a Quad of each lane is a whole head");

// Conversions.

__device__ __forceinline__ float wide(half_t v) {
#if BF16
    return __uint_as_float((u32)v << 16);
#else
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
#endif
}

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
#if BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("{.reg .f16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b};}"
        : "=r"(both) : "f"(low), "f"(high));
#endif
    return both;
}

__device__ __forceinline__ float low(u32 both) { return wide((half_t)(both & 0xffff)); }
__device__ __forceinline__ float high(u32 both) { return wide((half_t)(both >> 16)); }
__device__ __forceinline__ half_t narrow(float v) { return (half_t)(pack(v, 0.f) & 0xffff); }

__device__ __forceinline__ uint4 stream(const half_t* from) {  // read once: not worth a place in L1
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int offset = WARP / 2; offset; offset >>= 1) v += __shfl_xor_sync(~0u, v, offset);
    return v;
}

// Tensor cores. A dot product does not care about the order of its terms, so a thread takes 8
// neighbours of an output's weights and of an input row for its part of several steps: both operands
// are loaded 16 bytes at a time, as they lie in memory.

__device__ __forceinline__ void multiply(float* c, uint4 top, uint4 bottom, uint4 x) {
#if __CUDA_ARCH__ >= 800
#if BF16
#define MMA(a, b, d, e, f, g)                                                                    \
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}," \
        " {%8, %9}, {%0, %1, %2, %3};"                                                           \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                         \
        : "r"(a), "r"(b), "r"(d), "r"(e), "r"(f), "r"(g))
#else
#define MMA(a, b, d, e, f, g)                                                                    \
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"   \
        " {%8, %9}, {%0, %1, %2, %3};"                                                           \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                         \
        : "r"(a), "r"(b), "r"(d), "r"(e), "r"(f), "r"(g))
#endif
    MMA(top.x, bottom.x, top.y, bottom.y, x.x, x.y);
    MMA(top.z, bottom.z, top.w, bottom.w, x.z, x.w);
#else
#define MMA(a, b, d)                                                                             \
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6},"      \
        " {%0, %1, %2, %3};"                                                                     \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                         \
        : "r"(a), "r"(b), "r"(d))
    MMA(top.x, bottom.x, x.x);
    MMA(top.y, bottom.y, x.y);
    MMA(top.z, bottom.z, x.z);
    MMA(top.w, bottom.w, x.w);
#endif
}

// y[b, m] = sum over k of W[m, k] x[b, k], for few rows b: each weight is read once.
//
// A block makes 16 outputs of every row; its warps share K among them. In a step a warp multiplies
// 32 terms of 16 outputs with those of 8 rows: a lane has 8 of the terms, of two outputs and a row.

constexpr int TILE_OUTPUTS = 16;     // of a tensor core's tile
constexpr int TILE_ROWS = 8;
constexpr int LANE_TERMS = 8;        // 16 bytes
constexpr int STEP_TERMS = 32;       // 8 of each of the 4 lanes that share an output and a row
constexpr int WARPS = 8;
constexpr int AHEAD = 8;             // steps whose weights are on their way at once
constexpr int INTERLEAVE = 8;        // gate and up take turns by so many outputs

static_assert(TILE_OUTPUTS == 2 * INTERLEAVE, "a tile has gates and the ups that belong to them");
static_assert(STEP_TERMS * TILE_ROWS == LANE_TERMS * WARP, "the lanes of a warp share a step");

enum { STORE, ADD, GATED };

template <int TILES, bool NORM, int END>
__device__ __forceinline__ void skinny(
    const half_t* weight, const void* input, const float* norm, const float* residual, void* output,
    int outputs, int terms, int rows, float epsilon) {
    constexpr int ROWS = TILES * TILE_ROWS;
    __shared__ float parts[WARPS][ROWS][TILE_OUTPUTS + 1];  // one more, so that banks differ
    __shared__ float scale[ROWS];
    static_assert(sizeof(parts) + sizeof(scale) <= 48 * 1024, "what a block has without asking");
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int pair = lane & 3, group = lane >> 2;
    const int slice = terms / WARPS, steps = slice / STEP_TERMS;
    const int first = warp * slice + pair * LANE_TERMS;
    const half_t* top = weight + (size_t)(blockIdx.x * TILE_OUTPUTS + group) * terms + first;
    const half_t* bottom = top + (size_t)(TILE_OUTPUTS / 2) * terms;
    float sums[TILES][4] = {};
    uint4 above[AHEAD], below[AHEAD];

#pragma unroll
    for (int i = 0; i < AHEAD; ++i)
        if (i < steps) {
            above[i] = stream(top + i * STEP_TERMS);
            below[i] = stream(bottom + i * STEP_TERMS);
        }

    if (NORM) {  // the scale of each row, while the first weights are on their way
        for (int row = warp; row < rows; row += WARPS) {
            const float4* x = (const float4*)((const float*)input + (size_t)row * terms);
            float sum = 0.f;
            for (int i = lane; i < terms / 4; i += WARP) {
                const float4 v = x[i];
                sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            }
            sum = warp_sum(sum);
            if (lane == 0) scale[row] = rsqrtf(sum / terms + epsilon);
        }
        __syncthreads();
    }

    for (int begin = 0; begin < steps; begin += AHEAD) {
        if (begin) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
                if (begin + i < steps) {
                    above[i] = stream(top + (begin + i) * STEP_TERMS);
                    below[i] = stream(bottom + (begin + i) * STEP_TERMS);
                }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            if (begin + i >= steps) break;
            const int at = first + (begin + i) * STEP_TERMS;
            float4 gain0, gain1;
            if (NORM) gain0 = *(const float4*)(norm + at), gain1 = *(const float4*)(norm + at + 4);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const int row = min(tile * TILE_ROWS + group, rows - 1);
                uint4 x;
                if (NORM) {
                    const float* from = (const float*)input + (size_t)row * terms + at;
                    const float4 x0 = *(const float4*)from, x1 = *(const float4*)(from + 4);
                    const float by = scale[row];
                    x.x = pack(x0.x * by * gain0.x, x0.y * by * gain0.y);
                    x.y = pack(x0.z * by * gain0.z, x0.w * by * gain0.w);
                    x.z = pack(x1.x * by * gain1.x, x1.y * by * gain1.y);
                    x.w = pack(x1.z * by * gain1.z, x1.w * by * gain1.w);
                } else {
                    x = *(const uint4*)((const half_t*)input + (size_t)row * terms + at);
                }
                multiply(sums[tile], above[i], below[i], x);
            }
        }
    }

#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {  // as a tensor core leaves its results
        const int row = tile * TILE_ROWS + pair * 2;
        parts[warp][row][group] = sums[tile][0];
        parts[warp][row + 1][group] = sums[tile][1];
        parts[warp][row][group + TILE_OUTPUTS / 2] = sums[tile][2];
        parts[warp][row + 1][group + TILE_OUTPUTS / 2] = sums[tile][3];
    }
    __syncthreads();
    constexpr int MADE = END == GATED ? INTERLEAVE : TILE_OUTPUTS;  // outputs of this block
    for (int i = threadIdx.x; i < MADE * rows; i += blockDim.x) {
        const int row = i / MADE, m = i % MADE;
        float sum = 0.f, up = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            sum += parts[w][row][m];
            if (END == GATED) up += parts[w][row][m + INTERLEAVE];
        }
        if (END == STORE) {
            ((half_t*)output)[(size_t)row * outputs + blockIdx.x * TILE_OUTPUTS + m] = narrow(sum);
        } else if (END == ADD) {
            const size_t at = (size_t)row * outputs + blockIdx.x * TILE_OUTPUTS + m;
            ((float*)output)[at] = residual[at] + sum;
        } else {
            const float gated = sum / (1.f + __expf(-sum)) * up;
            ((half_t*)output)[(size_t)row * (outputs / 2) + blockIdx.x * INTERLEAVE + m] =
                narrow(gated);
        }
    }
}

#define SKINNY(NAME, TILES, NORM, END)                                                           \
    extern "C" __global__ __launch_bounds__(WARPS * WARP) void NAME(                                \
        const half_t* weight, const void* input, const float* norm, const float* residual,        \
        void* output, int outputs, int terms, int rows, float epsilon) {                          \
        skinny<TILES, NORM, END>(weight, input, norm, residual, output, outputs, terms, rows,     \
                                 epsilon);                                                        \
    }
SKINNY(norm_linear_1, 1, true, STORE)
SKINNY(norm_gated_1, 1, true, GATED)
SKINNY(linear_add_1, 1, false, ADD)
SKINNY(linear_add_2, 2, false, ADD)
SKINNY(linear_add_4, 4, false, ADD)

// What is around a matrix product of many rows, which cuBLAS does better.

extern "C" __global__ void rms_norm(const float* input, const float* norm, half_t* output, int width,
                                    float epsilon) {
    __shared__ float sums[WARP];  // of as many warps as a block may have
    const float4* x = (const float4*)(input + (size_t)blockIdx.x * width);
    float sum = 0.f;
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
        const float4 v = x[i];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = 0.f;
    for (int w = 0; w < blockDim.x / WARP; ++w) sum += sums[w];
    const float by = rsqrtf(sum / width + epsilon);
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
        const float4 v = x[i], gain = ((const float4*)norm)[i];
        uint2 both;
        both.x = pack(v.x * by * gain.x, v.y * by * gain.y);
        both.y = pack(v.z * by * gain.z, v.w * by * gain.w);
        ((uint2*)(output + (size_t)blockIdx.x * width))[i] = both;
    }
}

extern "C" __global__ void silu_and_mul(const half_t* both, half_t* output, int count) {
    static_assert(INTERLEAVE == 8, "8 gates are 16 bytes, and so are the 8 ups after them");
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const uint4 g = ((const uint4*)both)[2 * i], u = ((const uint4*)both)[2 * i + 1];
    const u32 gates[4] = {g.x, g.y, g.z, g.w}, ups[4] = {u.x, u.y, u.z, u.w};
    u32 out[4];
    for (int j = 0; j < 4; ++j) {
        const float a = low(gates[j]), b = high(gates[j]);
        out[j] = pack(a / (1.f + __expf(-a)) * low(ups[j]), b / (1.f + __expf(-b)) * high(ups[j]));
    }
    ((uint4*)output)[i] = make_uint4(out[0], out[1], out[2], out[3]);
}

extern "C" __global__ void add(const float* x, const half_t* y, float* output, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float4 v = ((const float4*)x)[i];
    const uint2 w = ((const uint2*)y)[i];
    ((float4*)output)[i] = make_float4(v.x + low(w.x), v.y + high(w.x), v.z + low(w.y),
                                       v.w + high(w.y));
}

// Four numbers of a head's 128 for each lane: 2 lane, 2 lane + 1, and those 64 further on, which the
// rotary embedding turns together.

struct Quad { float a, b, c, d; };

__device__ __forceinline__ Quad turned(const u32* from, const float* norm, const float* rope,
                                       float epsilon) {
    const int lane = threadIdx.x % WARP;
    const u32 front = from[lane], back = from[lane + WARP];
    const float a = low(front), b = high(front), c = low(back), d = high(back);
    const float by = rsqrtf(warp_sum(a * a + b * b + c * c + d * d) / WIDTH + epsilon);
    const float2 gain0 = ((const float2*)norm)[lane], gain1 = ((const float2*)norm)[lane + WARP];
    const float2 cosine = ((const float2*)rope)[lane], sine = ((const float2*)rope)[lane + WARP];
    const float p = a * by * gain0.x, q = b * by * gain0.y;
    const float r = c * by * gain1.x, s = d * by * gain1.y;
    return {p * cosine.x - r * sine.x, q * cosine.y - s * sine.y, r * cosine.x + p * sine.x,
            s * cosine.y + q * sine.y};
}

__device__ __forceinline__ void store_key(const u32* from, const float* norm, const float* rope,
                                         float epsilon, u32* key) {
    const int lane = threadIdx.x % WARP;
    const Quad k = turned(from, norm, rope, epsilon);
    key[lane] = pack(k.a, k.b), key[lane + WARP] = pack(k.c, k.d);
}

__device__ __forceinline__ void store_value(const u32* from, u32* value) {
    const int lane = threadIdx.x % WARP;
    value[lane] = from[lane], value[lane + WARP] = from[lane + WARP];
}

// Keys and values of many queries, one block a query, for an attention that does not store its own.
//
// Here and in `attend`: `each` rows of qkv, one after another, are of one sequence; `table` has
// `line` cache entries for each sequence.

extern "C" __global__ void store_kv(
    const half_t* qkv, const float* k_norm, const float* rope, half_t* keys, half_t* values,
    const int* sequence, const int* position, const int* table, int line, int each, int heads,
    int kv_heads, float epsilon) {
    const int row = blockIdx.x, at = position[row / each] + row % each;
    const size_t entry = (size_t)table[(size_t)sequence[row / each] * line + at] * kv_heads;
    for (int head = threadIdx.x / WARP; head < kv_heads; head += blockDim.x / WARP) {
        const u32* from = (const u32*)(qkv + ((size_t)row * (heads + 2 * kv_heads) + heads + head)
                                       * WIDTH);
        const size_t to = (entry + head) * WIDTH / 2;
        store_key(from, k_norm, rope + (size_t)at * WIDTH, epsilon, (u32*)keys + to);
        store_value(from + kv_heads * WIDTH / 2, (u32*)values + to);
    }
}

// Attention of a row's queries to all that came before, one block for each row and key/value head.
//
// 8 lanes share a position: each has 16 of its 128 numbers. Every such group walks through positions
// of its own, with an online softmax; they are merged at the end, first in a warp, then in the block.

constexpr int POSITION_LANES = 8;                        // that share a position
constexpr int LANE_WIDTH = WIDTH / POSITION_LANES;       // numbers of a head that a lane has
constexpr int WARP_POSITIONS = WARP / POSITION_LANES;    // that a warp looks at in one turn
constexpr int MOST_WARPS = 16;                           // of a block of 512 threads

static_assert(LANE_WIDTH == 16, "a lane reads its part of a key as two uint4");

template <int QUERIES, bool STORE_KV>
__device__ __forceinline__ void attend(
    const half_t* qkv, const float* q_norm, const float* k_norm, const float* rope, half_t* keys,
    half_t* values, const int* sequence, const int* position, const int* table, int line, int each,
    half_t* output, int heads, int kv_heads, float epsilon) {
    constexpr int ASKED = QUERIES * SHARE;  // queries of this block: all of the heads that share
    __shared__ float asked[ASKED][WIDTH];
    __shared__ float best[MOST_WARPS][ASKED], weight[MOST_WARPS][ASKED];
    __shared__ float mixed[MOST_WARPS][ASKED][WIDTH];
    static_assert(sizeof(asked) + sizeof(best) + sizeof(weight) + sizeof(mixed) <= 48 * 1024,
                  "what a block has without asking");
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int head = blockIdx.x, row = blockIdx.y, begin = position[row / each] + row % each;
    const int* entries = table + (size_t)sequence[row / each] * line;
    const int columns = heads + 2 * kv_heads;

    // Norm and turn the queries; with STORE_KV also the new keys, and store them with their values.
    for (int i = warp; i < ASKED + (STORE_KV ? 2 * QUERIES : 0); i += warps) {
        const int query = i < ASKED ? i / SHARE : (i - ASKED) % QUERIES, at = begin + query;
        const u32* from = (const u32*)(qkv + ((size_t)row * QUERIES + query) * columns * WIDTH);
        const float* turn = rope + (size_t)at * WIDTH;
        const size_t entry = ((size_t)entries[at] * kv_heads + head) * WIDTH / 2;
        if (i < ASKED) {
            const Quad q = turned(from + (head * SHARE + i % SHARE) * WIDTH / 2, q_norm, turn,
                                  epsilon);
            ((float2*)asked[i])[lane] = make_float2(q.a, q.b);
            ((float2*)asked[i])[lane + WARP] = make_float2(q.c, q.d);
        } else if (i < ASKED + QUERIES) {
            store_key(from + (heads + head) * WIDTH / 2, k_norm, turn, epsilon, (u32*)keys + entry);
        } else {
            store_value(from + (heads + kv_heads + head) * WIDTH / 2, (u32*)values + entry);
        }
    }
    __syncthreads();

    // Each lane takes its part of every query.
    const int part = lane & (POSITION_LANES - 1), stride = warps * WARP_POSITIONS;
    float query[ASKED][LANE_WIDTH], mix[ASKED][LANE_WIDTH], top[ASKED], total[ASKED];
#pragma unroll
    for (int i = 0; i < ASKED; ++i) {
        top[i] = NEVER, total[i] = 0.f;
#pragma unroll
        for (int j = 0; j < LANE_WIDTH; ++j)
            query[i][j] = asked[i][part * LANE_WIDTH + j], mix[i][j] = 0.f;
    }

    // Walk through the positions; the next key and value are fetched before these are used.
    const int last = begin + QUERIES;
    int at = warp * WARP_POSITIONS + lane / POSITION_LANES;
    uint4 k0, k1, v0, v1;
    const auto fetch = [&](int place) {
        const size_t from = ((size_t)entries[place] * kv_heads + head) * WIDTH + part * LANE_WIDTH;
        k0 = *(const uint4*)(keys + from), k1 = *(const uint4*)(keys + from + 8);
        v0 = *(const uint4*)(values + from), v1 = *(const uint4*)(values + from + 8);
    };
    fetch(min(at, last - 1));
    // Every lane takes every turn, for the shuffles; beyond the last position a turn counts nothing.
    for (int turn = 0; turn < last; turn += stride, at += stride) {
        const u32 ks[8] = {k0.x, k0.y, k0.z, k0.w, k1.x, k1.y, k1.z, k1.w};
        const u32 vs[8] = {v0.x, v0.y, v0.z, v0.w, v1.x, v1.y, v1.z, v1.w};
        if (turn + stride < last) fetch(min(at + stride, last - 1));
#pragma unroll
        for (int i = 0; i < ASKED; ++i) {
            float score = 0.f;
#pragma unroll
            for (int j = 0; j < 8; ++j)
                score += query[i][2 * j] * low(ks[j]) + query[i][2 * j + 1] * high(ks[j]);
            for (int offset = POSITION_LANES / 2; offset; offset >>= 1)
                score += __shfl_xor_sync(~0u, score, offset);
            if (at > begin + i / SHARE) continue;
            score *= SCALE;
            const float now = fmaxf(top[i], score);
            const float old = __expf(top[i] - now), chance = __expf(score - now);
            top[i] = now, total[i] = total[i] * old + chance;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                mix[i][2 * j] = mix[i][2 * j] * old + chance * low(vs[j]);
                mix[i][2 * j + 1] = mix[i][2 * j + 1] * old + chance * high(vs[j]);
            }
        }
    }

    // Merge the groups of a warp.
#pragma unroll
    for (int i = 0; i < ASKED; ++i) {
        for (int offset = POSITION_LANES; offset < WARP; offset <<= 1) {
            const float other = __shfl_xor_sync(~0u, top[i], offset), now = fmaxf(top[i], other);
            const float own = __expf(top[i] - now), its = __expf(other - now);
            total[i] = total[i] * own + __shfl_xor_sync(~0u, total[i], offset) * its;
#pragma unroll
            for (int j = 0; j < LANE_WIDTH; ++j)
                mix[i][j] = mix[i][j] * own + __shfl_xor_sync(~0u, mix[i][j], offset) * its;
            top[i] = now;
        }
        if (lane < POSITION_LANES) {
#pragma unroll
            for (int j = 0; j < LANE_WIDTH; ++j) mixed[warp][i][part * LANE_WIDTH + j] = mix[i][j];
            if (lane == 0) best[warp][i] = top[i], weight[warp][i] = total[i];
        }
    }
    __syncthreads();

    // Merge the warps of the block.
    for (int i = threadIdx.x; i < ASKED * WIDTH; i += blockDim.x) {
        const int which = i / WIDTH, d = i % WIDTH;
        float now = NEVER, sum = 0.f, value = 0.f;
        for (int w = 0; w < warps; ++w) now = fmaxf(now, best[w][which]);
        for (int w = 0; w < warps; ++w) {
            const float by = __expf(best[w][which] - now);
            sum += weight[w][which] * by, value += mixed[w][which][d] * by;
        }
        const size_t query_row = (size_t)row * QUERIES + which / SHARE;
        output[(query_row * heads + head * SHARE + which % SHARE) * WIDTH + d] = narrow(value / sum);
    }
}

#define ATTEND(NAME, QUERIES, STORE_KV)                                                              \
    extern "C" __global__ void NAME(                                                              \
        const half_t* qkv, const float* q_norm, const float* k_norm, const float* rope,           \
        half_t* keys, half_t* values, const int* sequence, const int* position, const int* table, \
        int line, int each, half_t* output, int heads, int kv_heads, float epsilon) {             \
        attend<QUERIES, STORE_KV>(qkv, q_norm, k_norm, rope, keys, values, sequence, position,    \
                                  table, line, each, output, heads, kv_heads, epsilon);           \
    }
ATTEND(attend_1, 1, true)
ATTEND(attend_2, 2, true)
ATTEND(attend_stored, 1, false)

// One code for each row: the whole of sampler.py, one block a row. Scores stay in registers.

constexpr int SAMPLE_THREADS = 512;
constexpr int THREAD_SCORES = 8;     // that a thread has: 4,096 in all
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / WARP;
constexpr int INDEX_BITS = 16;       // of a code, in the counter that noise is made of

static_assert(SAMPLE_THREADS % WARP == 0, "block_sum has a place for each warp");
static_assert(SAMPLE_THREADS * THREAD_SCORES <= 1 << INDEX_BITS, "each score has noise of its own");

__device__ __forceinline__ u32 ordered(float v) {  // as unsigned integers compare
    const u32 bits = __float_as_uint(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float block_sum(float v, float* shared) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = v;
    __syncthreads();
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < SAMPLE_WARPS; ++w) sum += shared[w];
    return sum;
}

__device__ __forceinline__ float gumbel(u64 key, int step, int group, int index) {
    const u64 counter = ((u64)(step * CODEBOOKS + group) << INDEX_BITS) + index;
    const u64 y = counter * key, z = y + key;
    u64 x = y * y + y;
    x = (x >> 32) | (x << 32);
    x = x * x + z;
    x = (x >> 32) | (x << 32);
    x = x * x + y;
    x = (x >> 32) | (x << 32);
    const u32 word = (u32)((x * x + z) >> 32);
    return -logf(-logf(((float)(word >> 9) + 0.5f) * 1.1920928955078125e-07f));
}

extern "C" __global__ __launch_bounds__(SAMPLE_THREADS) void sample(
    const half_t* logits, int stride, int count, unsigned char* seen, const unsigned char* allowed,
    int eos, const float* temperature, const int* top_k, const float* top_p, const float* penalty,
    const u64* key, const int* step, const int* slots, int group, unsigned char* bad,
    long long* codes) {
    __shared__ float sums[SAMPLE_WARPS];
    __shared__ float values[SAMPLE_WARPS];
    __shared__ int indices[SAMPLE_WARPS];
    const int row = blockIdx.x, slot = slots[row], thread = threadIdx.x;
    const float heat = temperature[slot];
    const bool greedy = heat == 0.f;
    unsigned char* mine = seen ? seen + (size_t)slot * count : nullptr;

    // Scores: penalties, suppressed codes, temperature.
    float score[THREAD_SCORES];
    bool finite = true;
#pragma unroll
    for (int j = 0; j < THREAD_SCORES; ++j) {
        const int i = thread + j * SAMPLE_THREADS;
        score[j] = MINUS_INFINITY;
        if (i >= count) continue;
        float v = wide(logits[(size_t)row * stride + i]);
        finite &= isfinite(v);
        if (mine && mine[i]) v = v > 0.f ? v / penalty[slot] : v * penalty[slot];
        if (allowed && !allowed[i]) v = MINUS_INFINITY;
        if (i == eos && step[slot] < MIN_FRAMES) v = MINUS_INFINITY;
        score[j] = greedy ? v : v / heat;
    }
    finite = __syncthreads_and(finite);

    // The least key that top-k and top-p keep.
    u32 cut = 0;
    if (!greedy && finite) {
        // The greatest key that at least top_k scores reach: bit by bit, unless one fits exactly.
        const float wanted = (float)min(max(top_k[slot], 1), count);
        for (int bit = 31; bit >= 0; --bit) {
            const u32 tried = cut | (1u << bit);
            float reach = 0.f;
#pragma unroll
            for (int j = 0; j < THREAD_SCORES; ++j) reach += ordered(score[j]) >= tried ? 1.f : 0.f;
            reach = block_sum(reach, sums);
            if (reach >= wanted) cut = tried;
            if (reach == wanted) break;
        }
        if (top_p[slot] < 1.f) {
            float peak = MINUS_INFINITY;
#pragma unroll
            for (int j = 0; j < THREAD_SCORES; ++j) peak = fmaxf(peak, score[j]);
            for (int offset = WARP / 2; offset; offset >>= 1)
                peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, offset));
            __syncthreads();
            if ((thread & (WARP - 1)) == 0) values[thread >> WARP_BITS] = peak;
            __syncthreads();
            for (int w = 0; w < SAMPLE_WARPS; ++w) peak = fmaxf(peak, values[w]);
            float all = 0.f;
#pragma unroll
            for (int j = 0; j < THREAD_SCORES; ++j)
                all += ordered(score[j]) >= cut ? expf(score[j] - peak) : 0.f;
            all = block_sum(all, sums) * top_p[slot];
            // The least key above which less than top_p of the chance lies.
            u32 below = 0;  // so many lie at or above `all`, bit by bit
            for (int bit = 31; bit >= 0; --bit) {
                const u32 tried = below | (1u << bit);
                float over = 0.f;
#pragma unroll
                for (int j = 0; j < THREAD_SCORES; ++j)
                    over += ordered(score[j]) >= max(tried, cut) ? expf(score[j] - peak) : 0.f;
                if (block_sum(over, sums) >= all) below = tried;
            }
            cut = max(cut, below);
        }
    }

    // The best of what is kept, with noise: of the thread, the warp, the block.
    float most = MINUS_INFINITY;
    int choice = count;
#pragma unroll
    for (int j = 0; j < THREAD_SCORES; ++j) {
        const int i = thread + j * SAMPLE_THREADS;
        if (i >= count || ordered(score[j]) < cut) continue;
        const float v = greedy ? score[j] : score[j] + gumbel(key[slot], step[slot], group, i);
        if (v > most || (v == most && i < choice)) most = v, choice = i;
    }
    for (int offset = WARP / 2; offset; offset >>= 1) {
        const float v = __shfl_xor_sync(~0u, most, offset);
        const int i = __shfl_xor_sync(~0u, choice, offset);
        if (v > most || (v == most && i < choice)) most = v, choice = i;
    }
    if ((thread & (WARP - 1)) == 0)
        values[thread >> WARP_BITS] = most, indices[thread >> WARP_BITS] = choice;
    __syncthreads();
    if (thread) return;
    for (int w = 1; w < SAMPLE_WARPS; ++w)
        if (values[w] > most || (values[w] == most && indices[w] < choice))
            most = values[w], choice = indices[w];
    if (!finite) choice = 0, bad[slot] = 1;
    codes[row] = choice;
    if (mine) mine[choice] = 1;
}

extern "C" __global__ void embed(const half_t* table, const long long* codes, float* output,
                                 int width) {
    const half_t* from = table + (size_t)codes[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        output[(size_t)blockIdx.x * width + i] = wide(from[i]);
}

extern "C" __global__ void frame_embed(
    const long long* codes, int groups, const half_t* first, const half_t* rest, int book,
    const half_t* text, int ahead, const int* length, const half_t* pad, const int* step,
    const int* slots, float* output, int width) {
    const int row = blockIdx.y, slot = slots[row], i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    const long long* mine = codes + (size_t)row * groups;
    float sum = wide(first[(size_t)mine[0] * width + i]);
    for (int g = 1; g < groups; ++g)
        sum += wide(rest[((size_t)(g - 1) * book + mine[g]) * width + i]);
    const int at = step[slot];
    const half_t* fed = at < length[slot] ? text + ((size_t)slot * ahead + at) * width : pad;
    output[(size_t)row * width + i] = sum + wide(fed[i]);
}

// y + inverse_beta sin(alpha y)^2 of y = x + bias, for 8 channels of one sample a thread.

extern "C" __global__ void snake(const half_t* x, long long x_row, const half_t* alpha,
                                 const half_t* inverse_beta, const half_t* bias, half_t* output,
                                 long long output_row, int length, int channels, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int parts = channels / 8, part = i % parts, sample = i / parts;
    const size_t at = (size_t)(sample % length) * channels + part * 8;
    const uint4 v = *(const uint4*)(x + (sample / length) * x_row + at);
    const uint4 a = ((const uint4*)alpha)[part], b = ((const uint4*)inverse_beta)[part];
    const uint4 c = ((const uint4*)bias)[part];
    const u32 vs[4] = {v.x, v.y, v.z, v.w}, as[4] = {a.x, a.y, a.z, a.w};
    const u32 bs[4] = {b.x, b.y, b.z, b.w}, cs[4] = {c.x, c.y, c.z, c.w};
    u32 out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float y[2] = {low(vs[j]) + low(cs[j]), high(vs[j]) + high(cs[j])};
        const float rate[2] = {low(as[j]), high(as[j])}, size[2] = {low(bs[j]), high(bs[j])};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const float angle = y[k] * rate[k];
            const float turned = angle - 3.14159265358979f * rintf(angle * 0.318309886183791f);
            const float wave = __sinf(turned);  // squared, so half a turn is a whole one
            y[k] += size[k] * wave * wave;
        }
        out[j] = pack(y[0], y[1]);
    }
    *(uint4*)(output + (sample / length) * output_row + at) = make_uint4(out[0], out[1], out[2],
                                                                         out[3]);
}
