// Copies of KV pages between two arenas in one call, so that a thread beside a pass takes the
// interpreter's lock once per copy and not once per page: for every page it would wait until the pass
// lets go of it.
//
// Does what `move_pages` of exec/copier.py does in torch; called by it.

#include <cstdint>
#include <cstring>

// target[ours[i]] = source[theirs[i]] for `count` pages of `bytes` each; the arenas do not overlap.
extern "C" void batchgen_copy_pages(const char *source, const int64_t *theirs, char *target,
                                    const int64_t *ours, int64_t count, int64_t bytes) {
  for (int64_t i = 0; i < count; i++)
    std::memcpy(target + ours[i] * bytes, source + theirs[i] * bytes, bytes);
}
