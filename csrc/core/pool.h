#pragma once

namespace mm {

// Makes the calling thread yield to the event loop's: compute threads are never in a hurry of milliseconds.
void lowerThreadPriority();

}  // namespace mm
