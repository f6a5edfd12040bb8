// What an exported function returns: 0, or why it has done nothing whole.

#pragma once

#include <new>

namespace batchgen {

enum Failure { UNKNOWN = 1, NO_MEMORY = 2 }; // UNKNOWN: a kind or a shape, or no such instructions

// An exception must not leave a function that is called from elsewhere: it would end the process.
template <class Work> int guarded(Work work) {
  try {
    return work();
  } catch (const std::bad_alloc &) {
    return NO_MEMORY;
  } catch (...) {
    return UNKNOWN;
  }
}

} // namespace batchgen
