// What every kernel file shares. No CUDA headers: NVRTC brings the built-in functions, nothing else is installed.
#pragma once
