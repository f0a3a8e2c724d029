/* fake_cuda.h - tests that need a CUDA device, or NCCL, use what stands in for them (driver/). */
#ifndef EVENFLOW_TESTS_FAKE_CUDA_H
#define EVENFLOW_TESTS_FAKE_CUDA_H

/* In this process and those that it starts, unless the environment names a driver already. */
void fake_cuda_use(void);

/* The stand-in, whatever the environment names, with a device as the words say. */
void fake_cuda_wish(const char *words);
/* Likewise, with an NCCL as the words say. */
void fake_nccl_wish(const char *words);

#endif
