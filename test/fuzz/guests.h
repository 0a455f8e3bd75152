/* guests.h: the native guests of fuzz.c. */
#ifndef TEST_FUZZ_GUESTS_H
#define TEST_FUZZ_GUESTS_H

#include "base/base.h"

#define must(x) ((x) ? (void)0 : broken(#x, __LINE__))
_Noreturn void broken(const char *what, int line);

/* LOOM_ACTIVITY and LOOM_ACTOR make these out of builtin/. */
void loom_run_wdl_check(void);
void loom_run_wdl(void);

extern yyjson_val *expected;
void run_compare(void); /* its input reads as `expected` */

void run_template(void); /* input: [names, template] */

extern struct str script; /* lines "OP ARGUMENT", asked word for word by the turn whose input is script_input */
extern char script_input[40];
void run_script(void);

void run_echo(void);

#endif
