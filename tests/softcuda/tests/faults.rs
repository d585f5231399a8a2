//! Every planted mistake is caught, with its kind, its kernel, and the line and thread it stands at.
#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use softcuda::device::How;
use softcuda::{Device, Error, Fault, FaultKind, Shape};

/// Launches and returns the fault; `line` must be in the text of its PTX line.
fn caught(
    g: &mut Gpu,
    kernel: &str,
    shape: Shape,
    args: &[&dyn Bytes],
    kind: FaultKind,
    line: &str,
) -> Fault {
    let e = g.launch(kernel, shape, args).expect_err("the mistake was not caught");
    let f = e.fault().unwrap_or_else(|| panic!("{e}")).clone();
    assert_eq!(f.kind, kind, "{f}");
    assert_eq!(f.kernel, kernel);
    assert!(f.text.contains(line), "{f}");
    // The line number is that of the text, counted in the file as it is.
    let text = FAULTS.lines().nth(f.line as usize - 1).unwrap_or("");
    assert_eq!(text.trim().replace('\t', " "), f.text);
    assert!(f.to_string().contains(kernel) && f.to_string().contains(&format!("PTX line {}", f.line)));
    f
}

fn floats(g: &mut Gpu, n: usize) -> u64 {
    g.put(&vec![1.0f32; n][..])
}

#[test]
fn accesses_past_the_end() {
    let mut g = Gpu::new(FAULTS);
    let (x, out) = (floats(&mut g, 64), floats(&mut g, 64));
    let f = caught(
        &mut g,
        "load_past_end",
        Shape::linear(1, 64),
        &[&x, &out],
        FaultKind::OutOfBounds,
        "ld.global.f32",
    );
    assert_eq!((f.thread, f.address), ([63, 0, 0], Some(x + 256)));
    let f =
        caught(&mut g, "store_past_end", Shape::linear(1, 64), &[&out], FaultKind::OutOfBounds, "st.global");
    assert_eq!((f.thread, f.address), ([63, 0, 0], Some(out + 256)));
    caught(&mut g, "null_store", Shape::linear(1, 1), &[&0u64], FaultKind::OutOfBounds, "st.global");
    let shape = Shape { dynamic_shared: 256, ..Shape::linear(1, 64) };
    let f = caught(&mut g, "shared_past_end", shape, &[&out], FaultKind::OutOfBounds, "st.shared");
    assert_eq!(f.thread, [63, 0, 0]);
}

#[test]
fn misaligned_access() {
    let mut g = Gpu::new(FAULTS);
    let (x, out) = (floats(&mut g, 64), floats(&mut g, 64));
    let f =
        caught(&mut g, "misaligned", Shape::linear(1, 32), &[&x, &out], FaultKind::Misaligned, "ld.global");
    assert_eq!(f.address, Some(x + 2));
}

#[test]
fn freed_memory() {
    let mut g = Gpu::new(FAULTS);
    let (x, out) = (floats(&mut g, 64), floats(&mut g, 64));
    g.dev.free(x).unwrap();
    caught(&mut g, "copy", Shape::linear(1, 64), &[&x, &out], FaultKind::UseAfterFree, "ld.global");
    assert!(g.dev.free(x).is_err() && g.dev.read(x, &mut [0; 4]).is_err());
}

#[test]
fn memory_nothing_wrote() {
    let mut g = Gpu::new(FAULTS);
    let (x, out) = (g.empty(256), floats(&mut g, 64));
    caught(&mut g, "copy", Shape::linear(1, 64), &[&x, &out], FaultKind::Uninitialised, "ld.global");
    // One byte short of a word is not a written word.
    g.dev.write(x, &[1; 3]).unwrap();
    caught(&mut g, "copy", Shape::linear(1, 1), &[&x, &out], FaultKind::Uninitialised, "ld.global");
    let f = caught(
        &mut g,
        "shared_unwritten",
        Shape::linear(1, 64),
        &[&out],
        FaultKind::Uninitialised,
        "ld.shared",
    );
    assert_eq!(f.thread, [4, 0, 0]);
    caught(
        &mut g,
        "local_unwritten",
        Shape::linear(1, 32),
        &[&out, &2i32],
        FaultKind::Uninitialised,
        "ld.local",
    );
    assert!(g.dev.read(x, &mut [0; 4]).is_err());
}

#[test]
fn races_in_shared_memory() {
    let mut g = Gpu::new(FAULTS);
    let out = floats(&mut g, 64);
    caught(&mut g, "race_block", Shape::linear(1, 64), &[&out], FaultKind::Race, "shared.f32");
    caught(&mut g, "race_warp", Shape::linear(1, 32), &[&out], FaultKind::Race, "ld.volatile.shared");
    caught(&mut g, "race_write", Shape::linear(1, 64), &[&out], FaultKind::Race, "st.shared");
    g.ok("warp_ordered", Shape::linear(1, 32), &[&out]);
}

/// Shuffles and votes of a whole warp order no memory; a warp barrier does.
#[test]
fn a_shuffle_and_a_vote_are_no_barriers() {
    let ptx = |between: &str| {
        format!(
            ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry k()\n{{\n.reg .pred %p<3>;\n.reg .b32 %r<6>;\n\
             .shared .align 4 .b8 s[128];\nmov.u32 %r1, %tid.x;\nshl.b32 %r2, %r1, 2;\nxor.b32 %r3, %r2, 4;\nsetp.eq.u32 %p1, %r1, 0;\n\
             st.shared.u32 [%r2], %r1;\n{between}\nld.shared.u32 %r4, [%r3];\nret;\n}}\n"
        )
    };
    for between in
        ["", "shfl.sync.bfly.b32 %r5|%p2, %r1, 1, 31, -1;", "vote.sync.any.pred %p2, %p1, -1;", "membar.cta;"]
    {
        let e = Gpu::new(&ptx(between)).launch("k", Shape::linear(1, 32), &[]).expect_err(between);
        let f = e.fault().unwrap();
        assert!(f.kind == FaultKind::Race && f.text.starts_with("ld.shared") && f.thread == [0, 0, 0], "{f}");
    }
    for between in ["bar.warp.sync -1;", "bar.sync 0;"] {
        Gpu::new(&ptx(between)).ok("k", Shape::linear(1, 32), &[]);
    }
}

#[test]
fn races_between_blocks_in_global_memory() {
    for threads in [1, 2] {
        let mut g = Gpu::new(FAULTS);
        g.dev.threads = threads;
        let (x, out) = (floats(&mut g, 64), floats(&mut g, 64));
        // Both blocks write the same places; which of the two is told depends on the schedule.
        let f = caught(&mut g, "copy", Shape::linear(2, 64), &[&x, &out], FaultKind::Race, "st.global");
        assert!(f.why.contains("race between blocks") && f.why.contains("wrote it"), "{f}");
        // One block alone, and another launch, are no race.
        g.ok("copy", Shape::linear(1, 64), &[&x, &out]);
        g.ok("copy", Shape::linear(1, 64), &[&x, &out]);
        // A block reads what the other writes.
        let mut g = Gpu::new(include_str!("../kernels/grid.ptx"));
        g.dev.threads = threads;
        let n = g.put(&[0u32][..]);
        let e = g.launch("increment", Shape::linear(2, 1), &[&n]).unwrap_err();
        assert_eq!(e.fault().map(|f| f.kind), Some(FaultKind::Race), "{e}");
        g.dev.races = false;
        g.ok("increment", Shape::linear(2, 1), &[&n]);
    }
}

/// Block 0 hands a number to block 1, which waits for it: no race where all their accesses are strong.
#[test]
fn races_of_strong_accesses_between_blocks() {
    let ptx = |store: &str, load: &str, last: &str| {
        format!(
            ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .pred %q;\n.reg .b32 %r<3>;\n\
             .reg .b64 %a;\nld.param.u64 %a, [p];\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, 7;\nsetp.ne.u32 %q, %r1, 0;\n@%q bra WAIT;\n\
             {store}.u32 [%a], %r2;\nret;\nWAIT:\n{load}.u32 %r2, [%a];\nsetp.ne.u32 %q, %r2, 7;\n@%q bra WAIT;\n\
             {last}.u32 %r2, [%a];\nst.global.u32 [%a+4], %r2;\nret;\n}}\n"
        )
    };
    let run = |store: &str, load: &str, last: &str| {
        let mut g = Gpu::new(&ptx(store, load, last));
        let at = g.put(&[0u32; 2][..]);
        let how = How { max_shared: 48 * 1024, cooperative: true, detail: false, races: true };
        let kernel = g.module.kernel("k").unwrap();
        let ran = g.dev.run(&g.module, kernel, Shape::linear(2, 1), &at.bytes(), how);
        ran.map(|_| g.get32(at, 2)).map_err(|e| (e.fault().unwrap().kind, e.fault().unwrap().text.clone()))
    };
    let (store, load) = ("st.relaxed.gpu.global", "ld.relaxed.gpu.global");
    assert_eq!(run(store, load, load), Ok(vec![7, 7]));
    assert_eq!(run(store, "ld.volatile.global", load), Ok(vec![7, 7]));
    for (weak, who) in [
        (run("st.global", load, load), "ld.relaxed.gpu.global.u32"),
        (run(store, "ld.global", load), "ld.global.u32"),
        (run(store, load, "ld.global"), "ld.global.u32"),
    ] {
        let (kind, text) = weak.unwrap_err();
        assert!(kind == FaultKind::Race && text.starts_with(who), "{kind:?} {text}");
    }
}

#[test]
fn barriers_that_not_all_reach() {
    let mut g = Gpu::new(FAULTS);
    let out = floats(&mut g, 64);
    caught(&mut g, "divergent_barrier", Shape::linear(1, 32), &[&out], FaultKind::Divergence, "bar.");
    caught(&mut g, "two_barriers", Shape::linear(1, 64), &[&out], FaultKind::Divergence, "bar.sync 1, 64");
    // Lanes that end let the others go on, as the documentation of shuffles has it.
    g.ok("partial_shuffle", Shape::linear(1, 32), &[&out]);
}

#[test]
fn constant_memory_trap_and_endless_loop() {
    let mut g = Gpu::new(FAULTS);
    let table = g.module.global("kTable").unwrap().0;
    caught(&mut g, "null_store", Shape::linear(1, 1), &[&table], FaultKind::ReadOnly, "st.global");
    caught(&mut g, "trapped", Shape::linear(2, 32), &[], FaultKind::Trap, "trap;");
    let flag = g.put(&[0i32][..]);
    g.dev.budget = 100_000;
    let e = g.launch("endless", Shape::linear(1, 32), &[&flag]).unwrap_err();
    assert_eq!(e.fault().map(|f| f.kind), Some(FaultKind::Budget), "{e}");
}

#[test]
fn the_first_faulty_block_is_told_whatever_the_threads() {
    for threads in [1, 2, 7] {
        let mut g = Gpu::new(FAULTS);
        g.dev.threads = threads;
        let f = caught(&mut g, "trapped", Shape::linear(50, 32), &[], FaultKind::Trap, "trap;");
        assert_eq!(f.block, [0, 0, 0]);
    }
}

#[test]
fn launches_that_cannot_be() {
    let mut g = Gpu::new(FAULTS);
    let x = floats(&mut g, 4);
    let mut refused = |shape: Shape, args: &[&dyn Bytes], kernel: &str, why: &str| {
        let e = g.launch(kernel, shape, args).unwrap_err();
        assert!(matches!(e, Error::Launch(_)) && e.to_string().contains(why), "{e}");
    };
    refused(Shape::linear(1, 1), &[&x], "copy", "takes 2 arguments, 1 were given");
    refused(Shape::linear(1, 1), &[&x, &1u32], "copy", "argument 1 has 8 bytes, 4 were given");
    refused(Shape::linear(1, 1025), &[&x, &x], "copy", "at most 1024");
    refused(Shape::linear(0, 1), &[&x, &x], "copy", "no side of 0");
    refused(Shape { dynamic_shared: 49 * 1024, ..Shape::linear(1, 1) }, &[&x, &x], "copy", "shared memory");
    refused(Shape::linear(1, 1), &[], "missing", "no kernel `missing`");
    let out = g.empty(4);
    g.ok("many_args", Shape::linear(1, 1), &[&1i32, &2.5f64, &3i16, &x, &out]);
    assert_eq!(g.get32(out, 1), bits(&[7.5]));
}

#[test]
fn what_it_does_not_know_is_refused_at_load_with_its_line() {
    let module = |body: &str| {
        format!(
            ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry k()\n{{\n.reg .b32 %r<4>;\n{body}\nret;\n}}\n"
        )
    };
    for body in [
        "frobnicate.b32 %r1, %r2;",
        "div.rz.f32 %r1, %r1, %r1;",
        "bra nowhere;",
        "mov.u32 %q1, 3;",
        "ld.global.u32 %r1, [missing];",
        "call helper;",
        "cvta %r1, %r2;",
        "bar.red.popc.u32 %r1, 0, %p1;",
        "match.any.sync.b32 %r1, %r2, -1;",
    ] {
        match Device::new().load_module(&module(body)) {
            Err(Error::Ptx { line: 7, text, .. }) => assert_eq!(text, body),
            other => panic!("{body}: {other:?}"),
        }
    }
    for text in ["{", ".visible .entry k(", ".version", "\"open", ".global .b8 x[4] = {1,2,3,4,5};"] {
        assert!(matches!(Device::new().load_module(text), Err(Error::Ptx { .. })), "{text}");
    }
}

#[test]
fn a_shuffle_and_a_vote_that_wait_for_each_other() {
    let ptx = ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry k()\n{\n.reg .pred %p<3>;\n.reg .b32 %r<4>;\nmov.u32 %r1, %tid.x;\n\
               setp.lt.u32 %p1, %r1, 16;\n@%p1 bra L;\nvote.sync.any.pred %p2, %p1, -1;\nbra M;\nL:\n\
               shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, -1;\nM:\nret;\n}\n";
    let mut g = Gpu::new(ptx);
    let e = g.launch("k", Shape::linear(1, 32), &[]).unwrap_err();
    let f = e.fault().unwrap();
    assert_eq!(f.kind, FaultKind::Divergence, "{f}");
    assert!(f.text.starts_with("shfl.sync") || f.text.starts_with("vote.sync"), "{f}");
}
