/*
 * Linked into every test program, in front of libc's signal().
 *
 * cmocka puts its own handler on SIGSEGV, SIGILL, SIGFPE, ... around each test and afterwards restores what it found. Wasmtime installs
 * its handlers once per process, so from the second test on a guest's trap would end in cmocka's handler and fail the test. Here
 * cmocka's request is ignored: a guest's trap reaches Wasmtime, any other fault AddressSanitizer, which prints where it happened.
 */
#include <signal.h>

typedef void (*handler_fn)(int);
handler_fn signal(int number, handler_fn handler);

handler_fn signal(int number, handler_fn handler) {
    switch (number) {
    case SIGSEGV:
    case SIGBUS:
    case SIGILL:
    case SIGFPE:
    case SIGTRAP: return SIG_DFL;
    default: break;
    }
    struct sigaction old, new = {.sa_handler = handler, .sa_flags = SA_RESTART};
    return sigaction(number, &new, &old) ? SIG_ERR : old.sa_handler;
}
