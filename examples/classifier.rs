//! The classifier in twenty lines: train on the embedded reviews, then ask about two sentences.

use recurve::backend::{AdamConfig, Device, Parts};
use recurve::checkpoint::Checkpoint;
use recurve::data::{self, DataOptions, Source};
use recurve::model::{Model, ModelConfig};
use recurve::train::{TrainOptions, train};

fn main() -> recurve::Result<()> {
    let dataset = data::load(&DataOptions { source: Source::Sample, ..Default::default() }, None)?;
    let model = Model::new(ModelConfig { vocab: dataset.vocab, ..Default::default() })?;
    let params = model.init(1);
    let options = TrainOptions { epochs: 3, seed: 1, ..Default::default() };
    let mut checkpoint = Checkpoint::new(model, params, AdamConfig::default(), &dataset, options);

    let mut engine = Device::Auto.engine(0)?;
    train(engine.as_mut(), &mut checkpoint, &dataset, &mut ())?;
    for epoch in &checkpoint.progress.history {
        println!(
            "epoch {}: loss {:.4}, test accuracy {:.4}",
            epoch.epoch,
            epoch.loss,
            epoch.test_accuracy.unwrap_or(f64::NAN)
        );
    }

    engine.load(&checkpoint.model, &checkpoint.state, checkpoint.adam, Parts::default())?;
    for text in ["a moving, beautifully acted film", "a tedious, lifeless mess"] {
        let probabilities = engine.predict(&checkpoint.encoding.rows([text])?, 1)?;
        println!("{:.2} {}: {text}", probabilities[1], checkpoint.classes[1]);
    }
    Ok(())
}
