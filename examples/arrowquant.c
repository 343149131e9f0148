#define ARROWQUANT_IMPLEMENTATION
#include "../arrowquant.h"
