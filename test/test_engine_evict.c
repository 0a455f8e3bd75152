/* All of test_engine.c once more, with WASM guests that are evicted at every await: each await is a replay. */
#define ENGINE_EVICT true
#include "test_engine.c"
