/* hash.c: SHA-256 for names and identities, a fast 64-bit hash for tables and row checksums.
 *
 * hash64 stands on disk (row checksums), so its result is part of the store's format: little-endian loads.
 */
#include "base/base.h"

#include <assert.h>
#include <openssl/evp.h>
#include <string.h>

/* Looked up once: EVP_sha256() would be looked up at each digest, which takes as long again. */
static EVP_MD *sha256_md;

__attribute__((constructor)) static void sha256_init(void) {
    sha256_md = EVP_MD_fetch(NULL, "SHA256", NULL);
}

void sha256(struct str s, uint8_t out[32]) {
    int ok = EVP_Digest(s.p, s.n, out, NULL, sha256_md, NULL);
    assert(ok);
}

void hex_encode(const uint8_t *p, size_t n, char *out) {
    for (size_t i = 0; i < n; i++) {
        *out++ = "0123456789abcdef"[p[i] >> 4];
        *out++ = "0123456789abcdef"[p[i] & 15];
    }
    *out = 0;
}

void sha256_hex(struct str s, char out[65]) {
    uint8_t digest[32];
    sha256(s, digest);
    hex_encode(digest, sizeof digest, out);
}

/* The idea of wyhash (Wang Yi, public domain): fold the 128-bit product of two words that each hold 8 bytes of input. */
static uint64_t fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t load(const char *p, size_t n) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "checksums on disk are of little-endian words");
    uint64_t word = 0;
    memcpy(&word, p, n);
    return word;
}

uint64_t hash64(struct str s, uint64_t seed) {
    const uint64_t k0 = 0x9E3779B97F4A7C15, k1 = 0xD1B54A32D192ED03, k2 = 0xABC98388FB8FAC03;
    uint64_t h = fold(seed ^ k0, s.n ^ k1);
    size_t n = s.n;
    const char *p = s.p;
    for (; n > 16; n -= 16, p += 16) h = fold(load(p, 8) ^ k1, load(p + 8, 8) ^ h);
    uint64_t a = n ? load(p, n < 8 ? n : 8) : 0, b = n > 8 ? load(p + 8, n - 8) : 0;
    return fold(k2 ^ fold(a ^ k1, b ^ h), h ^ k0);
}
