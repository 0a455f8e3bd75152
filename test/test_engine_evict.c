/* All of test_engine.c once more, with WASM guests that are evicted after every op: each answer is a replay. */
#define ENGINE_EVICT true
#include "test_engine.c"
