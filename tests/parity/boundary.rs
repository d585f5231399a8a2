//! Ids and labels that are out of range: an error on host back ends, before anything is written. (Device back ends
//! check ids when a data set is loaded.)

use recurve::backend::cpu::Cpu;
use recurve::backend::{
    CrossEntropyBackward, CrossEntropyDims, CrossEntropyForward, EmbeddingBackward, EmbeddingDims,
    EmbeddingForward, Ops as _,
};

#[test]
fn an_id_out_of_range_is_named_and_nothing_is_written() {
    let cpu = Cpu::new(1).unwrap();
    let d = EmbeddingDims { n: 3, v: 5, e: 2 };
    let ids = &[0, 4, 5][..];
    let mut out = [7.0; 6];
    let error = cpu
        .embedding_forward(d, EmbeddingForward { table: &[1.0; 10][..], ids, out: &mut out })
        .unwrap_err()
        .to_string();
    assert!(error.contains("embedding_forward") && error.contains("5 at index 2"), "{error}");
    assert_eq!(out, [7.0; 6]);
    let mut dtable = [7.0; 10];
    let error = cpu
        .embedding_backward(d, EmbeddingBackward { ids, dout: &[1.0; 6][..], dtable: &mut dtable })
        .unwrap_err()
        .to_string();
    assert!(error.contains("embedding_backward") && error.contains("5 at index 2"), "{error}");
    assert_eq!(dtable, [7.0; 10]);
}

#[test]
fn a_label_out_of_range_is_named_and_nothing_is_written() {
    let cpu = Cpu::new(1).unwrap();
    let d = CrossEntropyDims { b: 2, c: 2 };
    let labels = &[1, 2][..];
    let (mut probs, mut loss, mut hits) = ([7.0; 4], [7.0; 2], [7.0; 2]);
    let a = CrossEntropyForward {
        logits: &[0.0; 4][..],
        labels,
        class_weights: None,
        probs: &mut probs,
        loss: &mut loss,
        hits: &mut hits,
    };
    let error = cpu.cross_entropy_forward(d, a).unwrap_err().to_string();
    assert!(error.contains("cross_entropy_forward") && error.contains("2 at index 1"), "{error}");
    assert_eq!((probs, loss, hits), ([7.0; 4], [7.0; 2], [7.0; 2]));
    let a = CrossEntropyBackward { probs: &[0.5; 4][..], labels, class_weights: None, dlogits: &mut probs };
    let error = cpu.cross_entropy_backward(d, a).unwrap_err().to_string();
    assert!(error.contains("cross_entropy_backward") && error.contains("2 at index 1"), "{error}");
    assert_eq!(probs, [7.0; 4]);
}
