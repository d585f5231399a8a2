// The kernels of fused_steps.cu over what fused_half.cu and adam_step_bf16/_f16 store in 16 bits: _bf16, _f16. With _f16 whether a step
// is done is known when its gradients are (loss_scale.cu): every block that updates parameters comes to the same answer, and rows without
// tokens wait for it too.
#include "fused_steps.cuh"

#define BF16_PARAMETERS , bf16 *stored
FUSED_STEPS(32, 16, _bf16, bf16, BF16_PARAMETERS, stored, nullptr, nullptr, 0.0, 0.0)
FUSED_STEPS(32, 32, _bf16, bf16, BF16_PARAMETERS, stored, nullptr, nullptr, 0.0, 0.0)
FUSED_STEPS(32, 64, _bf16, bf16, BF16_PARAMETERS, stored, nullptr, nullptr, 0.0, 0.0)
FUSED_STEPS(64, 16, _bf16, bf16, BF16_PARAMETERS, stored, nullptr, nullptr, 0.0, 0.0)
FUSED_STEPS(64, 32, _bf16, bf16, BF16_PARAMETERS, stored, nullptr, nullptr, 0.0, 0.0)

#define F16_PARAMETERS , f16 *stored, Scaling *scaling, u32 *finite, double beta1, double beta2
FUSED_STEPS(32, 16, _f16, f16, F16_PARAMETERS, stored, scaling, finite, beta1, beta2)
FUSED_STEPS(32, 32, _f16, f16, F16_PARAMETERS, stored, scaling, finite, beta1, beta2)
FUSED_STEPS(32, 64, _f16, f16, F16_PARAMETERS, stored, scaling, finite, beta1, beta2)
FUSED_STEPS(64, 16, _f16, f16, F16_PARAMETERS, stored, scaling, finite, beta1, beta2)
FUSED_STEPS(64, 32, _f16, f16, F16_PARAMETERS, stored, scaling, finite, beta1, beta2)
