/* sabotage.h: included before all else in what the simulator links; in every other build SABOTAGE(name) is false (base.h).
 * One fault at a time, by name: the simulator must find it. */
#ifndef LOOM_TEST_SABOTAGE_H
#define LOOM_TEST_SABOTAGE_H

#include <stdbool.h>
#include <string.h>

extern const char *sabotage; /* sim.c; NULL: none */
#define SABOTAGE(name) (sabotage && strcmp(sabotage, name) == 0)

#endif
