// The decoder without Python, for instruction sets and sanitizers that cannot be loaded into it:
// its products beside those in double, and passes of several threads beside those of one.

#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "decoder.h"
#include "threads.cpp"

namespace {

std::mt19937 chance(0);

void require(bool holds, const char* what) {
  if (holds) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

// A random matrix of codes or bfloat16, and its weights as numbers.
struct Weights {
  std::vector<bf16> halves, scales;
  std::vector<uint8_t> codes, packed;
  std::vector<double> numbers;
  Matrix matrix{};

  Weights(Format format, int outputs, int inputs, int group = 32) : numbers(outputs * inputs) {
    std::uniform_real_distribution<float> uniform(-1, 1);
    matrix = {format, outputs, inputs, group};
    packed.resize(outputs * inputs * 2);
    if (format == BF16) {
      for (auto& number : numbers) {
        const float value = uniform(chance) / 8;
        halves.push_back(load<uint32_t>(&value) >> 16), number = widen(halves.back());
      }
      pack_bf16(halves.data(), (bf16*)packed.data(), outputs, inputs);
    } else {
      const int levels = 1 << format, groups = inputs / group;
      for (int i = 0; i < outputs * groups; i++) scales.push_back(0x3c00 + chance() % 128);
      for (int n = 0; n < outputs; n++)
        for (int k = 0; k < inputs; k++) {
          codes.push_back(n == 0 ? 0 : n == 1 ? levels - 1 : chance() % levels);
          const int place = (n / LANES * groups + k / group) * LANES + n % LANES;
          numbers[n * inputs + k] = (codes.back() - levels / 2) * (double)widen(scales[place]);
        }
      pack_codes(codes.data(), packed.data(), outputs, inputs, format);
    }
    matrix.weights = packed.data(), matrix.scales = scales.data();
  }
};

// x as products see it.
std::vector<double> rounded(const std::vector<float>& x, const Matrix& m) {
  std::vector<double> found(x.begin(), x.end());
  if (m.format == BF16) return found;
  for (size_t start = 0; start < x.size(); start += m.group) {
    float most = 1e-30f;
    for (int k = 0; k < m.group; k++) most = std::max(most, std::fabs(x[start + k]));
    const float scale = most / 127;
    for (int k = 0; k < m.group; k++)
      found[start + k] = std::nearbyint(x[start + k] / scale) * (double)scale;
  }
  return found;
}

void check_products(Format format, int threads) {
  const int inputs = 128, outputs = 96;
  const Weights weights(format, outputs, inputs);
  std::uniform_real_distribution<float> uniform(-3, 3);
  for (int n : {1, 2, 3, 5, 8, 13}) {
    std::vector<float> x(n * inputs), y(n * outputs);
    for (auto& value : x) value = uniform(chance);
    for (int k = 0; k < 64; k++) x[k] = chance() % 2 ? 3 : -3;  // the largest sums there are
    const std::vector<double> exact = rounded(x, weights.matrix);
    require(!linear(&weights.matrix, x.data(), y.data(), n, threads), "a return value");
    for (int i = 0; i < n; i++)
      for (int o = 0; o < outputs; o++) {
        double sum = 0, size = 0;
        for (int k = 0; k < inputs; k++) {
          const double part = weights.numbers[o * inputs + k] * exact[i * inputs + k];
          sum += part, size += std::fabs(part);
        }
        const double most = (format == BF16 && HAVE_BF16 ? 1e-2 : 1e-5) * size;
        require(std::fabs(y[i * outputs + o] - sum) <= most, "a product");
      }
  }
}

constexpr int WIDTH = 64, HEAD = 16, LENGTH = 24, WORDS = 128;

// Of two sequences of the same tokens: the second is read in the same passes, two tokens at a time
// as long as there are some, and its logits are not wanted but for the last.
std::vector<float> logits(const Model& model, int threads, int each) {
  constexpr int PLACES = (LENGTH + BLOCK - 1) / BLOCK, SIZE = 2 * 2 * 2 * BLOCK * HEAD;
  std::vector<bf16> rows(2 * PLACES * SIZE);
  bf16* blocks[2][PLACES];
  for (int n = 0; n < 2 * PLACES; n++) blocks[n / PLACES][n % PLACES] = &rows[n * SIZE];
  std::vector<float> hidden(2 * LENGTH * WIDTH), found((LENGTH + 1) * WORDS);
  Cache one{LENGTH, 0, blocks[0]}, other{LENGTH, 0, blocks[1]};
  Cache* caches[] = {&one, &other};
  const uint8_t* const causal[] = {nullptr, nullptr};
  for (int start = 0; start < LENGTH; start += each) {
    const int more = std::min(2, LENGTH - other.length), n = each + more;
    std::vector<int64_t> ids, positions;
    std::vector<int32_t> wanted;
    for (int i = 0; i < n; i++) {
      positions.push_back(i < each ? start + i : other.length + i - each);
      ids.push_back(positions.back() * 7 % WORDS);
      if (i < each || positions.back() == LENGTH - 1) wanted.push_back(i);
    }
    const int32_t starts[] = {0, each, n};
    const Pass pass{n,
                    (int)wanted.size(),
                    threads,
                    1 + (more > 0),
                    caches,
                    starts,
                    ids.data(),
                    nullptr,
                    positions.data(),
                    causal,
                    wanted.data(),
                    hidden.data(),
                    &found[start * WORDS]};
    require(!forward(&model, &pass), "a pass");
    if ((int)wanted.size() > each)
      require(other.length == LENGTH, "the last token of the second sequence");
  }
  found.resize(LENGTH * WORDS);
  return found;
}

void check_passes() {
  const Weights qkv((Format)3, 4 * HEAD + 4 * HEAD, WIDTH), out(BF16, WIDTH, 4 * HEAD);
  const Weights gate(INT4, 96, WIDTH), up((Format)6, 96, WIDTH), down(INT8, WIDTH, 96);
  const Weights table(BF16, WORDS, WIDTH), head(INT8, WORDS, WIDTH);
  const std::vector<float> ones(WIDTH, 1.0f), tables(LENGTH * HEAD / 2, 0.5f);
  Layer layer{qkv.matrix, out.matrix, gate.matrix, up.matrix, down.matrix};
  layer.attention_norm = layer.mlp_norm = ones.data();
  Layer windowed = layer;
  windowed.attention_out_norm = windowed.mlp_out_norm = ones.data(), windowed.window = 7;
  const Layer layers[] = {layer, windowed};
  Model model{2, WIDTH, 4, 2, HEAD, 96, HEAD, GELU, 1e-5f, 2, 0.25f, 5, 1, 3};
  model.embedding = table.halves.data(), model.layer = layers, model.final_norm = ones.data();
  model.read_out = head.matrix, model.cosines[0] = model.sines[0] = tables.data();
  const std::vector<float> expected = logits(model, 1, 1);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; caller++)
    callers.emplace_back([&, caller] {
      slimscope_acquire_threads();
      for (int turn = 0; turn < 20; turn++)
        for (int each : {1, 3, 12, 24})
          require(logits(model, 1 + (caller + turn) % 4, each) == expected, "threads");
      slimscope_release_threads();
    });
  for (auto& caller : callers) caller.join();
}

}  // namespace

int main() {
#if defined(__ARM_FEATURE_DOTPROD)
  const char* NAME = "NEON with dot products";
#else
  const char* NAME = HAVE_BF16 ? "BF16" : "NEON";
#endif
  for (int format : {0, 2, 3, 4, 5, 6, 8})  // bfloat16, and bits of codes
    for (int threads : {1, 3}) check_products((Format)format, threads);
  check_passes();
  std::printf("%s: as expected\n", NAME);
}
