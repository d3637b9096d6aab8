// The fused step of Neumann: g is read, w, m and r are read and written in one pass, 28 bytes for each float32 parameter.
//
// The formula is that of neumann/optim/phases.py and covers every phase:
//
//     d = ±g + λ w + c r;  m ← carry m − η_m d;  u = μ_u m − η_u d;  w ← w + u;  r ← γ (r + u)
//
// c depends on ‖r‖ over all tensors. Its square was summed chunk by chunk in the step before, from the r that was stored. Chunks and
// lanes alone fix the order of every sum: neither the number of threads nor the width of the machine's vectors changes a bit.
// kernels/gpu.py is the same for CUDA. kernels/cpu.py compiles this file and defines the columns of the tables.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr int64_t LANES = 16;     // sums side by side, so that vectors of any width up to this may be used
constexpr int64_t BLOCK = 256;    // elements, so many that stay in the nearest cache
constexpr int64_t SMALL = 32768;  // elements below which waking a thread costs more than it saves

struct BFloat16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }
inline double wide(double x) { return x; }
inline float wide(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void narrow(float x, float& out) { out = x; }
inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, BFloat16& out) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>(x != x ? 0x7FC0 : rounded);
}

#if !defined(TENSOR_COLUMNS) || !defined(CHUNK_COLUMNS) || !defined(SCALAR_COLUMNS)
#error "kernels/cpu.py compiles this file: it defines the columns by the classes of kernels/layout.py"
#endif

struct Tensor {  // TensorRow: w, m, r (addresses), numel, group
  int64_t TENSOR_COLUMNS;
};

struct Chunk {  // ChunkRow: tensor, start
  int64_t CHUNK_COLUMNS;
};

struct Scalars {  // ScalarRow: the scalars of Phase, weight_decay, sign, active
  double SCALAR_COLUMNS;
};

// c = α‖r‖ − β/max(‖r‖, δ)³, and 0 where r = 0; cut at the largest number of the type, for infinity times zero would be nan.
double push_coefficient(double distance, const Scalars& s, double largest) {
  if (distance == 0 || (s.alpha == 0 && s.beta == 0)) return 0;
  const double guarded = std::max(distance, s.min_distance);
  const double push = s.alpha * distance - s.beta / (guarded * guarded * guarded);
  return std::min(std::max(push, -largest), largest);
}

template <typename W, typename S>
struct Update {
  S carry, push, eta_m, mu_u, eta_u, gamma, weight_decay, sign;

  inline void operator()(W& w, const W& g, S& m, S& r) const {
    const S before = wide(w);
    const S d = sign * wide(g) + weight_decay * before + push * r;
    m = carry * m - eta_m * d;
    S u = mu_u * m - eta_u * d;
    narrow(before + u, w);
    if (sizeof(W) < sizeof(S)) u = wide(w) - before;  // what a half rounds away has not moved the weight
    r = gamma * (r + u);
  }
};

// The squares of a chunk of r, added up lane by lane: a few in the type itself, since making doubles of all takes twice as long.
template <typename S>
struct Squares {
  double sums[LANES] = {};

  inline void add_block(const S* r) {
    S some[LANES] = {};
    for (int64_t row = 0; row < BLOCK; row += LANES)
      for (int64_t lane = 0; lane < LANES; ++lane) some[lane] += r[row + lane] * r[row + lane];
    for (int64_t lane = 0; lane < LANES; ++lane) sums[lane] += some[lane];
  }

  inline void add_rest(const S* r, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sums[i % LANES] += static_cast<double>(r[i]) * r[i];
  }

  double total() const {
    double sum = 0;
    for (double each : sums) sum += each;
    return sum;
  }
};

// Blocks are moved and then summed, from the cache: in one loop, compilers do neither at the speed of the memory.
template <typename W, typename S>
double step_chunk(W* __restrict__ w, const W* __restrict__ g, S* __restrict__ m, S* __restrict__ r, int64_t n, Update<W, S> update) {
  Squares<S> squares;
  int64_t i = 0;
  for (; i + BLOCK <= n; i += BLOCK) {
    for (int64_t j = i; j < i + BLOCK; ++j) update(w[j], g[j], m[j], r[j]);
    squares.add_block(r + i);
  }
  for (int64_t j = i; j < n; ++j) update(w[j], g[j], m[j], r[j]);
  squares.add_rest(r + i, n - i);
  return squares.total();
}

template <typename W, typename S>
void step(const Tensor* tensors, const int64_t* grads, const Chunk* chunks, int64_t n_chunks, int64_t chunk_size,
          const Scalars* scalars, const double* squares, int64_t n_squares, const double* before, double* after, int threads) {
  double total = 0;
  for (int64_t i = 0; i < n_squares; ++i) total += squares[i];
  const double distance = std::sqrt(total);
  int64_t elements = 0;
  for (int64_t c = 0; c < n_chunks; ++c) elements += std::min(chunk_size, tensors[chunks[c].tensor].numel - chunks[c].start);
  if (elements < SMALL) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t c = 0; c < n_chunks; ++c) {
    const Tensor& tensor = tensors[chunks[c].tensor];
    const Scalars& s = scalars[tensor.group];
    const int64_t start = chunks[c].start, grad = grads[chunks[c].tensor];
    if (grad == 0 || s.active == 0) {  // nothing of the tensor moves, and the chunk's share of ‖r‖² stays
      after[c] = before[c];
      continue;
    }
    const double push = push_coefficient(distance, s, std::numeric_limits<S>::max());
    const Update<W, S> update{S(s.carry), S(push),    S(s.eta_m),        S(s.mu_u),
                              S(s.eta_u), S(s.gamma), S(s.weight_decay), S(s.sign)};
    after[c] = step_chunk<W, S>(reinterpret_cast<W*>(tensor.w) + start, reinterpret_cast<const W*>(grad) + start,
                                reinterpret_cast<S*>(tensor.m) + start, reinterpret_cast<S*>(tensor.r) + start,
                                std::min(chunk_size, tensor.numel - start), update);
  }
}

template <typename S>
void squares(const Tensor* tensors, const Chunk* chunks, int64_t n_chunks, int64_t chunk_size, double* out) {
  for (int64_t c = 0; c < n_chunks; ++c) {
    const Tensor& tensor = tensors[chunks[c].tensor];
    const S* r = reinterpret_cast<const S*>(tensor.r) + chunks[c].start;
    const int64_t n = std::min(chunk_size, tensor.numel - chunks[c].start), blocks = n / BLOCK * BLOCK;
    Squares<S> sum;
    for (int64_t i = 0; i < blocks; i += BLOCK) sum.add_block(r + i);
    sum.add_rest(r + blocks, n - blocks);
    out[c] = sum.total();
  }
}

}  // namespace

// `type` is 0 for float32, 1 for float64, 2 for bfloat16 weights with a float32 state.
extern "C" void neumann_step(int type, const Tensor* tensors, const int64_t* grads, const Chunk* chunks, int64_t n_chunks,
                             int64_t chunk_size, const Scalars* scalars, const double* squares, int64_t n_squares,
                             const double* before, double* after, int threads) {
  const auto run = type == 0 ? step<float, float> : type == 1 ? step<double, double> : step<BFloat16, float>;
  run(tensors, grads, chunks, n_chunks, chunk_size, scalars, squares, n_squares, before, after, threads);
}

extern "C" void neumann_squares(int type, const Tensor* tensors, const Chunk* chunks, int64_t n_chunks, int64_t chunk_size,
                                double* out) {
  (type == 1 ? squares<double> : squares<float>)(tensors, chunks, n_chunks, chunk_size, out);
}
