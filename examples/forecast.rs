//! A time-series forecast with the operations alone, no classifier: an LSTM and a dense layer learn to predict the next
//! value of two noisy sines from the last 24.
//!
//! ```text
//! cargo run --release --example forecast
//! ```
//! All parameters lie in one array, so that Adam is one call. Another back end is another `ops`.

use recurve::backend::reference::Reference;
use recurve::backend::{
    Adam, AdamConfig, DenseBackward, DenseDims, DenseForward, Ops, SequenceBackward, SequenceDims,
    SequenceForward, StepState,
};
use recurve::rng::{Purpose, Rng};

/// Window, batch, inputs, hidden units.
const DIMS: SequenceDims = SequenceDims { t: 24, b: 32, e: 1, h: 12 };
const HEAD: DenseDims = DenseDims { b: DIMS.b, inputs: DIMS.h, outputs: 1 };
const STATE: usize = DIMS.b * DIMS.h;
/// Lengths of w, u, b and the dense layer's w and b.
const SIZES: [usize; 5] = [DIMS.e * 4 * DIMS.h, DIMS.h * 4 * DIMS.h, 4 * DIMS.h, DIMS.h, 1];
const STEPS: u16 = 400;

fn main() -> recurve::Result<()> {
    let ops = Reference::<f32>::new();
    let mut rng = Rng::new(1, Purpose::User, 0);
    let series = noisy_sines(1500, &mut rng);
    let (train, test) = series.split_at(1000);

    let n = SIZES.iter().sum();
    let mut params: Vec<f32> = (0..n).map(|_| 0.2 * rng.normal() as f32).collect();
    let (mut grads, mut m, mut v) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let mut net = Net::default();

    // The error to beat: the next value is the last one.
    let persistence = mean(test.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)));
    let before = net.test_error(&ops, &params, test)?;
    for step in 1..=STEPS {
        let starts: Vec<usize> =
            (0..DIMS.b).map(|_| rng.below((train.len() - DIMS.t) as u64) as usize).collect();
        net.forward(&ops, &params, train, &starts)?;
        ops.fill(&mut grads, 0.0)?;
        net.backward(&ops, &params, &mut grads)?;
        let step = StepState { clip_norm: 1.0, ..StepState::new(step.into(), 0.01, 0, 0) };
        let adam = Adam { grads: &grads[..], params: &mut params, m: &mut m, v: &mut v };
        ops.adam(&AdamConfig::default(), &step, adam)?;
    }
    let after = net.test_error(&ops, &params, test)?;

    println!("mean squared error of the next value, on {} unseen values ({}):", test.len(), ops.name());
    println!("  the last value again       {persistence:.4}");
    println!("  LSTM before training       {before:.4}");
    println!("  LSTM after {STEPS} steps       {after:.4}");
    // Not `after > …`: a NaN must fail.
    if !(after < 0.25 * persistence && after < before) {
        return Err(recurve::Error::Failed("the forecast is not better than the last value".to_string()));
    }
    Ok(())
}

fn noisy_sines(n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n)
        .map(|k| {
            let t = k as f64;
            (0.6 * (t / 3.1).sin() + 0.4 * (t / 1.3).sin() + 0.05 * rng.normal()) as f32
        })
        .collect()
}

fn mean(errors: impl ExactSizeIterator<Item = f32>) -> f32 {
    let n = errors.len() as f32;
    errors.sum::<f32>() / n
}

/// The activations of one batch of windows.
#[derive(Default)]
struct Net {
    x: Vec<f32>,
    gates: Vec<f32>,
    h: Vec<f32>,
    c: Vec<f32>,
    forecast: Vec<f32>,
    target: Vec<f32>,
}

impl Net {
    /// Forecasts the value after each window of `series` that begins at one of `starts`.
    fn forward<O>(&mut self, ops: &O, params: &[f32], series: &[f32], starts: &[usize]) -> recurve::Result<()>
    where
        O: Ops<Buf = [f32]>,
    {
        let SequenceDims { t, b, h, .. } = DIMS;
        // Time-major: one time step of all windows after the other.
        self.x = (0..t).flat_map(|s| starts.iter().map(move |&start| series[start + s])).collect();
        self.target = starts.iter().map(|&start| series[start + t]).collect();
        self.gates.resize(t * b * 4 * h, 0.0);
        self.h.resize((t + 1) * STATE, 0.0);
        self.c.resize((t + 1) * STATE, 0.0);
        self.forecast.resize(b, 0.0);

        let [w, u, bias, dense_w, dense_b] = parts(params);
        let zeros = [0.0; STATE];
        let sequence = SequenceForward::<[f32]> {
            x: &self.x,
            h0: &zeros,
            c0: &zeros,
            w,
            u,
            b: bias,
            gates: &mut self.gates,
            h: &mut self.h,
            c: &mut self.c,
        };
        ops.lstm_sequence_forward(DIMS, sequence)?;
        let x = &self.h[t * STATE..];
        ops.dense_forward(HEAD, DenseForward { x, w: dense_w, b: dense_b, y: &mut self.forecast })
    }

    /// Adds the gradient of the batch's mean squared error to `grads`.
    fn backward<O>(&self, ops: &O, params: &[f32], grads: &mut [f32]) -> recurve::Result<()>
    where
        O: Ops<Buf = [f32]>,
    {
        let dy: Vec<f32> = self
            .forecast
            .iter()
            .zip(&self.target)
            .map(|(y, target)| 2.0 * (y - target) / DIMS.b as f32)
            .collect();
        let [w, u, _, dense_w, _] = parts(params);
        let [dw, du, db, d_dense_w, d_dense_b] = parts_mut(grads);
        let (mut dh_last, mut dh0, mut dc0) = ([0.0; STATE], [0.0; STATE], [0.0; STATE]);
        let mut dx = vec![0.0; self.x.len()];
        let dense = DenseBackward::<[f32]> {
            x: &self.h[DIMS.t * STATE..],
            w: dense_w,
            dy: &dy,
            dx: &mut dh_last,
            dw: d_dense_w,
            db: d_dense_b,
        };
        ops.dense_backward(HEAD, dense)?;
        let sequence = SequenceBackward::<[f32]> {
            x: &self.x,
            w,
            u,
            gates: &self.gates,
            h: &self.h,
            c: &self.c,
            dh: None,
            dh_last: Some(&dh_last),
            dc_last: None,
            dx: &mut dx,
            dh0: &mut dh0,
            dc0: &mut dc0,
            dw,
            du,
            db,
        };
        ops.lstm_sequence_backward(DIMS, sequence)
    }

    /// Mean squared error over all whole batches of windows of `series`.
    fn test_error<O>(&mut self, ops: &O, params: &[f32], series: &[f32]) -> recurve::Result<f32>
    where
        O: Ops<Buf = [f32]>,
    {
        let starts: Vec<usize> = (0..series.len() - DIMS.t).collect();
        let mut errors = Vec::new();
        for starts in starts.chunks_exact(DIMS.b) {
            self.forward(ops, params, series, starts)?;
            errors.extend(self.forecast.iter().zip(&self.target).map(|(y, target)| (y - target).powi(2)));
        }
        Ok(mean(errors.into_iter()))
    }
}

/// The parameters by name: w, u, b, the dense layer's w and b.
fn parts(mut arena: &[f32]) -> [&[f32]; 5] {
    SIZES.map(|n| {
        let (part, rest) = arena.split_at(n);
        arena = rest;
        part
    })
}

/// [`parts`] to write to.
fn parts_mut(mut arena: &mut [f32]) -> [&mut [f32]; 5] {
    SIZES.map(|n| {
        let (part, rest) = std::mem::take(&mut arena).split_at_mut(n);
        arena = rest;
        part
    })
}
