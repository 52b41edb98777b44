// Which instruction sets work here.
#pragma once

namespace pk {

enum Set { PORTABLE = 0, AVX2 = 1, AVX512 = 2, AVX512_BF16 = 3, AMX = 4, SETS = 5 };

// Whether a set was built, this processor and this system have it, and, of products of bfloat16 in hardware, whether they
// give what they should: a virtual machine may show what it does not have.
bool supported(int which);

}  // namespace pk
