/* A CUDA driver with no GPU behind it, for Triton's own launchers (see `stub.py`): of a launch it tells whoever asked. */

typedef unsigned long long address;
typedef void (*listener)(const unsigned *config, address function, void **arguments);

static listener told;
void tell(listener whom) { told = whom; }

/* `config` is a CUlaunchConfig: grid, block, bytes of shared memory, then what is not looked at. */
int cuLaunchKernelEx(const unsigned *config, address function, void **arguments, void **extra) {
    if (told) told(config, function, arguments);
    return 0;
}

int cuModuleGetFunction(address *function) {
    static address last;
    *function = ++last;
    return 0;
}

/* Shared memory, registers, threads: as much as an sm_90 has of the most. */
int cuDeviceGetAttribute(int *value) { *value = 232448; return 0; }
int cuFuncGetAttribute(int *value) { *value = 1024; return 0; }
int cuPointerGetAttribute(address *value, int which, address pointer) { *value = pointer; return 0; }

#define NOTHING(name) int name(void) { return 0; }
NOTHING(cuCtxGetCurrent)
NOTHING(cuCtxGetDevice)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxSetLimit)
NOTHING(cuDeviceGet)
NOTHING(cuDevicePrimaryCtxRetain)
NOTHING(cuDriverGetVersion)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuGetErrorString)
NOTHING(cuModuleLoadData)
NOTHING(cuModuleUnload)
NOTHING(cuOccupancyMaxActiveClusters)
NOTHING(cuStreamIsCapturing)
NOTHING(cuTensorMapEncodeTiled)
