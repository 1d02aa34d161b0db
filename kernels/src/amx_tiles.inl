// The eight tiles of AMX, each 16 rows of 64 bytes, by macros: their numbers are part of the instructions.
//
// With SPARSIFY_TILE_MODEL the same macros work on memory, straight from the description of the instructions,
// so that kernels are checked on processors without AMX. A tile of 32-bit sums is C [rows][16]. Included inside
// the namespace of the kernels.

// What LDTILECFG reads: bytes of a row and rows of each tile.
struct alignas(64) TileConfig {
  std::uint8_t palette;
  std::uint8_t start_row;
  std::uint8_t reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

#if defined(SPARSIFY_TILE_MODEL)

struct Tiles {
  TileConfig config;
  std::uint8_t data[8][16][64];
};

inline Tiles& tiles() {
  static thread_local Tiles all;
  return all;
}

inline void load_tile(int tile, const void* from, std::size_t stride) {
  Tiles& all = tiles();
  for (std::size_t r = 0; r < all.config.rows[tile]; ++r) {
    __builtin_memcpy(all.data[tile][r], static_cast<const char*>(from) + r * stride, all.config.row_bytes[tile]);
  }
}

inline void store_tile(int tile, void* to, std::size_t stride) {
  const Tiles& all = tiles();
  for (std::size_t r = 0; r < all.config.rows[tile]; ++r) {
    __builtin_memcpy(static_cast<char*>(to) + r * stride, all.data[tile][r], all.config.row_bytes[tile]);
  }
}

// C[m][n] += sum over the four bytes of every k of A[m][k] (unsigned) * B[k][n] (signed).
inline void dot_tiles(int c, int a, int b) {
  Tiles& all = tiles();
  for (std::size_t m = 0; m < all.config.rows[c]; ++m) {
    for (std::size_t k = 0; k < all.config.row_bytes[a] / 4u; ++k) {
      for (std::size_t n = 0; n < all.config.row_bytes[c] / 4u; ++n) {
        std::int32_t sum;
        __builtin_memcpy(&sum, &all.data[c][m][4 * n], 4);
        for (std::size_t i = 0; i < 4; ++i) {
          sum += all.data[a][m][4 * k + i] * static_cast<std::int8_t>(all.data[b][k][4 * n + i]);
        }
        __builtin_memcpy(&all.data[c][m][4 * n], &sum, 4);
      }
    }
  }
}

#define SPARSIFY_TILE_LOAD(tile, from, stride) load_tile(tile, from, stride)
#define SPARSIFY_TILE_STORE(tile, to, stride) store_tile(tile, to, stride)
#define SPARSIFY_TILE_DOT(c, a, b) dot_tiles(c, a, b)

inline void read_config(TileConfig* to) { *to = tiles().config; }
inline void write_config(const TileConfig& config) { tiles().config = config; }
inline void release_tiles() { tiles().config = {}; }

#else

// GCC's intrinsics do not tell the compiler which memory they read: what was stored before must have been.
#define SPARSIFY_TILE_LOAD(tile, from, stride) \
  __asm__ volatile("" ::: "memory");           \
  _tile_loadd(tile, from, stride)
#define SPARSIFY_TILE_STORE(tile, to, stride) \
  _tile_stored(tile, to, stride);              \
  __asm__ volatile("" ::: "memory")
#define SPARSIFY_TILE_DOT(c, a, b) _tile_dpbusd(c, a, b)

inline void read_config(TileConfig* to) {
  _tile_storeconfig(to);
  __asm__ volatile("" ::: "memory");
}
inline void write_config(const TileConfig& config) {
  __asm__ volatile("" ::: "memory");
  _tile_loadconfig(&config);
}
inline void release_tiles() { _tile_release(); }

#endif

// The configuration of one run of products. Others in this thread may use tiles too: theirs is put back.
class Configured {
 public:
  explicit Configured(const TileConfig& config) {
    read_config(&before_);
    write_config(config);
  }
  ~Configured() {
    if (before_.palette == 0) {
      release_tiles();
    } else {
      write_config(before_);
    }
  }
  Configured(const Configured&) = delete;
  Configured& operator=(const Configured&) = delete;

 private:
  TileConfig before_;
};
