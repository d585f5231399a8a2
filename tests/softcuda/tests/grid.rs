//! Cooperative launches whose blocks order each other: the protocol is clean, and whatever is left out of it is a race.
#![allow(clippy::unwrap_used)]

mod common;
use common::*;
use softcuda::device::How;
use softcuda::{FaultKind, Shape};

const THREADS: u32 = 64;
/// Blocks of either role.
const BLOCKS: u32 = 3;

/// How one role hands over and waits.
#[derive(Clone, Copy)]
struct Role {
    /// Before the release: the block's barrier, and a fence.
    barrier_before: &'static str,
    fence_before: &'static str,
    /// The release without its address: it adds 1.
    release: &'static str,
    /// The load in the loop that waits; none is no wait.
    poll: Option<&'static str>,
    /// How much less than all it waits for.
    short: u32,
    fence_after: &'static str,
    barrier_after: &'static str,
}

const RELEASE: &str = "red.release.gpu.global.add.u32";
const CLEAN: Role = Role {
    barrier_before: "bar.sync 0;",
    fence_before: "",
    release: RELEASE,
    poll: Some("ld.acquire.gpu.global.u32"),
    short: 0,
    fence_after: "",
    barrier_after: "bar.sync 0;",
};

impl Role {
    /// One thread waits until the counter at `[%n+at]` is `%want`.
    fn wait(&self, at: u32) -> String {
        let (short, after) = (self.short, self.fence_after);
        let Some(poll) = self.poll else { return self.barrier_after.into() };
        format!(
            "sub.u32 %want, %want, {short};\n@%rest bra JOIN{at};\nWAIT{at}:\n{poll} %v, [%n+{at}];\n\
             setp.lt.s32 %q, %v, %want;\n@%q bra WAIT{at};\n{after}\nJOIN{at}:\n{}\n",
            self.barrier_after
        )
    }

    fn hand_over(&self, at: u32) -> String {
        let to = if self.release.starts_with("atom") { "%v, " } else { "" };
        format!(
            "{}\n@%rest bra DONE{at};\n{}\n{} {to}[%n+{at}], 1;\nDONE{at}:\n",
            self.barrier_before, self.fence_before, self.release
        )
    }
}

/// Blocks in two roles, in steps. A giver reads what the taker of its number wrote before, and writes x; a taker reads x of all
/// givers and writes y. Each thread reads what threads of another warp wrote. `swap`: takers are the first blocks.
fn steps(giver: Role, taker: Role, swap: bool) -> String {
    let (first, second) = if swap { ("TAKE", "GIVE") } else { ("GIVE", "TAKE") };
    let (give_wait, give) = (giver.wait(4), giver.hand_over(0));
    let (take_wait, take) = (taker.wait(0), taker.hand_over(4));
    format!(
        ".version 8.1\n.target sm_75\n.address_size 64\n\
         .visible .entry k(.param .u64 px, .param .u64 py, .param .u64 pn, .param .u32 ps)\n{{\n\
         .reg .pred %q, %rest, %more;\n.reg .b32 %t, %u, %b, %s, %v, %w, %want, %steps;\n.reg .b64 %x, %y, %n, %at, %from;\n\
         ld.param.u64 %x, [px];\nld.param.u64 %y, [py];\nld.param.u64 %n, [pn];\nld.param.u32 %steps, [ps];\n\
         mov.u32 %t, %tid.x;\nxor.b32 %u, %t, 32;\nsetp.ne.u32 %rest, %t, 0;\nmov.u32 %b, %ctaid.x;\nmov.u32 %s, 0;\n\
         setp.lt.u32 %q, %b, {BLOCKS};\n@%q bra {first};\nsub.u32 %b, %b, {BLOCKS};\nbra {second};\n\
         GIVE:\nmad.lo.u32 %v, %b, {THREADS}, %t;\nmul.wide.u32 %at, %v, 4;\nadd.u64 %at, %at, %x;\n\
         mad.lo.u32 %v, %b, {THREADS}, %u;\nmul.wide.u32 %from, %v, 4;\nadd.u64 %from, %from, %y;\n\
         GIVING:\nmul.lo.u32 %want, %s, {BLOCKS};\n{give_wait}\
         ld.global.u32 %v, [%from];\nadd.u32 %v, %v, %b;\nadd.u32 %v, %v, %t;\nst.global.u32 [%at], %v;\n{give}\
         add.u32 %s, %s, 1;\nsetp.lt.u32 %more, %s, %steps;\n@%more bra GIVING;\nret;\n\
         TAKE:\nmad.lo.u32 %v, %b, {THREADS}, %t;\nmul.wide.u32 %at, %v, 4;\nadd.u64 %at, %at, %y;\n\
         mul.wide.u32 %from, %u, 4;\nadd.u64 %from, %from, %x;\n\
         TAKING:\nmad.lo.u32 %want, %s, {BLOCKS}, {BLOCKS};\n{take_wait}\
         ld.global.u32 %w, [%from];\nld.global.u32 %v, [%from+256];\nadd.u32 %w, %w, %v;\n\
         ld.global.u32 %v, [%from+512];\nadd.u32 %w, %w, %v;\nst.global.u32 [%at], %w;\n{take}\
         add.u32 %s, %s, 1;\nsetp.lt.u32 %more, %s, %steps;\n@%more bra TAKING;\nret;\n}}\n"
    )
}

const HOW: How = How { max_shared: 48 * 1024, cooperative: true, detail: false, races: true };

/// What the takers wrote last, or the race.
fn run(ptx: &str, count: u32) -> Result<Vec<u32>, String> {
    let mut g = Gpu::new(ptx);
    let n = (BLOCKS * THREADS) as usize;
    let (x, y, counters) = (g.empty(n as u64 * 4), g.put(&vec![0u32; n][..]), g.put(&[0u32; 2][..]));
    // A race can be the first read of what nothing wrote yet; that is another fault, which must not hide it.
    g.dev.write(x, &vec![0; n * 4]).unwrap();
    let args = [x.bytes(), y.bytes(), counters.bytes(), count.bytes()].concat();
    let shape = Shape::linear(2 * BLOCKS, THREADS);
    match g.dev.run(&g.module, g.module.kernel("k").unwrap(), shape, &args, HOW) {
        Ok(_) => Ok(g.get32(y, n)),
        Err(e) => {
            let f = e.fault().unwrap_or_else(|| panic!("{e}"));
            assert_eq!(f.kind, FaultKind::Race, "{f}");
            Err(f.why.clone())
        }
    }
}

fn expected(count: u32) -> Vec<u32> {
    let n = THREADS as usize;
    let mut y = vec![0u32; n * BLOCKS as usize];
    for _ in 0..count {
        let x: Vec<u32> = (0..y.len()).map(|i| y[i ^ 32] + (i / n + i % n) as u32).collect();
        y = (0..y.len()).map(|i| (0..BLOCKS as usize).map(|b| x[b * n + ((i % n) ^ 32)]).sum()).collect();
    }
    y
}

#[test]
fn blocks_that_wait_for_each_other_in_turn_are_clean() {
    for swap in [false, true] {
        assert_eq!(run(&steps(CLEAN, CLEAN, swap), 7), Ok(expected(7)));
        for release in [
            "atom.release.gpu.global.add.u32",
            "atom.acq_rel.gpu.global.add.u32",
            "red.release.sys.global.add.u32",
        ] {
            let role = Role { release, ..CLEAN };
            assert_eq!(run(&steps(role, CLEAN, swap), 5), Ok(expected(5)), "{release}");
        }
        for fence in
            ["fence.acq_rel.gpu;", "fence.sc.gpu;", "membar.gl;", "membar.sys;", "fence.acq_rel.sys;"]
        {
            for (release, poll) in [
                ("red.relaxed.gpu.global.add.u32", "ld.relaxed.gpu.global.u32"),
                ("red.global.add.u32", "ld.volatile.global.u32"),
                ("atom.global.add.u32", "ld.relaxed.sys.global.u32"),
            ] {
                let fences =
                    Role { release, poll: Some(poll), fence_before: fence, fence_after: fence, ..CLEAN };
                for (giver, taker) in [(fences, fences), (fences, CLEAN), (CLEAN, fences)] {
                    assert_eq!(run(&steps(giver, taker, swap), 4), Ok(expected(4)), "{fence} {release}");
                }
            }
        }
    }
}

/// Whatever one of the roles leaves out: the race is found, whichever blocks come first.
#[track_caller]
fn races(without: Role) {
    for swap in [false, true] {
        for (giver, taker) in [(without, CLEAN), (CLEAN, without), (without, without)] {
            let why = run(&steps(giver, taker, swap), 4).unwrap_err();
            assert!(
                why.contains("race between blocks: offset ") && why.contains("of the same launch"),
                "{why}"
            );
            assert!(why.ends_with("it, and no release and acquire stand between"), "{why}");
        }
    }
}

#[test]
fn no_wait_at_all() {
    races(Role { poll: None, ..CLEAN });
}

#[test]
fn a_wait_for_too_few() {
    for short in 1..=BLOCKS {
        races(Role { short, ..CLEAN });
    }
}

#[test]
fn a_poll_that_does_not_acquire() {
    for poll in ["ld.relaxed.gpu.global.u32", "ld.volatile.global.u32"] {
        races(Role { poll: Some(poll), ..CLEAN });
        // A fence of the block orders no other.
        races(Role { poll: Some(poll), fence_after: "membar.cta;", ..CLEAN });
        // A fence before the poll does not help.
        races(Role { poll: Some(poll), fence_before: "membar.gl;", ..CLEAN });
    }
}

#[test]
fn a_count_that_does_not_release() {
    for release in [
        "red.relaxed.gpu.global.add.u32",
        "red.global.add.u32",
        "atom.global.add.u32",
        "atom.acquire.gpu.global.add.u32",
    ] {
        races(Role { release, ..CLEAN });
        races(Role { release, fence_before: "fence.acq_rel.cta;", ..CLEAN });
    }
    races(Role { release: "red.release.cta.global.add.u32", ..CLEAN });
}

#[test]
fn no_barrier_before_the_release() {
    races(Role { barrier_before: "", ..CLEAN });
    races(Role { barrier_before: "bar.warp.sync -1;", ..CLEAN });
}

#[test]
fn no_barrier_after_the_acquire() {
    races(Role { barrier_after: "", ..CLEAN });
    races(Role { barrier_after: "bar.warp.sync -1;", ..CLEAN });
}

/// Blocks of one role, that all write their part of x, meet, read `reads` words a thread of all of it, and meet again.
fn meet(wrote: Role, read: Role, blocks: u32, threads: u32, reads: u32) -> String {
    let (wrote_wait, wrote, read_wait, read) =
        (wrote.wait(0), wrote.hand_over(0), read.wait(4), read.hand_over(4));
    format!(
        ".version 8.1\n.target sm_75\n.address_size 64\n\
         .visible .entry k(.param .u64 px, .param .u64 py, .param .u64 pn, .param .u32 ps)\n{{\n\
         .reg .pred %q, %rest, %more;\n.reg .b32 %t, %b, %s, %v, %w, %i, %want, %steps;\n.reg .b64 %x, %y, %n, %at, %from;\n\
         ld.param.u64 %x, [px];\nld.param.u64 %y, [py];\nld.param.u64 %n, [pn];\nld.param.u32 %steps, [ps];\n\
         mov.u32 %t, %tid.x;\nsetp.ne.u32 %rest, %t, 0;\nmov.u32 %b, %ctaid.x;\nmov.u32 %s, 0;\n\
         mad.lo.u32 %v, %b, {threads}, %t;\nmul.wide.u32 %at, %v, 4;\nadd.u64 %y, %y, %at;\nSTEP:\n\
         mad.lo.u32 %v, %b, {threads}, %t;\nmul.wide.u32 %at, %v, 4;\nadd.u64 %at, %at, %x;\nmov.u32 %i, 0;\n\
         WRITE:\nst.global.u32 [%at], %s;\nadd.u64 %at, %at, {part};\nadd.u32 %i, %i, {whole};\nsetp.lt.u32 %q, %i, {reads};\n\
         @%q bra WRITE;\nmad.lo.u32 %want, %s, {blocks}, {blocks};\n{wrote}{wrote_wait}\
         mul.wide.u32 %from, %t, 4;\nadd.u64 %from, %from, %x;\nmov.u32 %w, 0;\nmov.u32 %i, 0;\n\
         READ:\nld.global.u32 %v, [%from];\nadd.u32 %w, %w, %v;\nadd.u64 %from, %from, {row};\nadd.u32 %i, %i, 1;\n\
         setp.lt.u32 %q, %i, {reads};\n@%q bra READ;\nst.global.u32 [%y], %w;\n\
         mad.lo.u32 %want, %s, {blocks}, {blocks};\n{read}{read_wait}\
         add.u32 %s, %s, 1;\nsetp.lt.u32 %more, %s, %steps;\n@%more bra STEP;\nret;\n}}\n",
        row = threads * 4,
        part = blocks * threads * 4,
        whole = blocks,
    )
}

/// Where every block waits for all, a wait for one less is caught too.
#[test]
fn blocks_that_all_meet() {
    let run = |wrote, read, blocks: u32| {
        let mut g = Gpu::new(&meet(wrote, read, blocks, THREADS, blocks));
        let n = (blocks * THREADS) as usize;
        let (x, y, counters) = (g.put(&vec![0u32; n][..]), g.empty(n as u64 * 4), g.put(&[0u32; 2][..]));
        let args = [x.bytes(), y.bytes(), counters.bytes(), 4u32.bytes()].concat();
        let done =
            g.dev.run(&g.module, g.module.kernel("k").unwrap(), Shape::linear(blocks, THREADS), &args, HOW);
        done.map(|_| g.get32(y, n)).map_err(|e| e.fault().unwrap().kind)
    };
    for blocks in [2, 5, 9] {
        assert_eq!(run(CLEAN, CLEAN, blocks), Ok(vec![3 * blocks; (blocks * THREADS) as usize]));
        for without in [
            Role { short: 1, ..CLEAN },
            Role { poll: None, ..CLEAN },
            Role { barrier_before: "", ..CLEAN },
            Role { barrier_after: "", ..CLEAN },
            Role { release: "red.relaxed.gpu.global.add.u32", ..CLEAN },
            Role { poll: Some("ld.relaxed.gpu.global.u32"), ..CLEAN },
        ] {
            assert_eq!(run(without, CLEAN, blocks), Err(FaultKind::Race));
            assert_eq!(run(CLEAN, without, blocks), Err(FaultKind::Race));
        }
    }
}

/// Block 0 runs `give`, block 1 `take`, each of one thread, on eight words of zeros.
fn pair(give: &str, take: &str) -> Result<Vec<u32>, String> {
    let ptx = format!(
        ".version 8.1\n.target sm_75\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .pred %q;\n.reg .b16 %h;\n\
         .reg .b32 %v, %b;\n.reg .b64 %a;\nld.param.u64 %a, [p];\nmov.u32 %b, %ctaid.x;\nmov.u16 %h, 7;\nsetp.ne.u32 %q, %b, 0;\n\
         @%q bra TAKE;\n{give}\nret;\nTAKE:\n{take}\nfence.proxy.alias;\nret;\n}}\n"
    );
    let mut g = Gpu::new(&ptx);
    let at = g.put(&[0u32; 8][..]);
    match g.dev.run(&g.module, g.module.kernel("k").unwrap(), Shape::linear(2, 1), &at.bytes(), HOW) {
        Ok(_) => Ok(g.get32(at, 8)),
        Err(e) => {
            let f = e.fault().unwrap_or_else(|| panic!("{e}"));
            assert_eq!(f.kind, FaultKind::Race, "{f}");
            Err(format!("{}: {}", f.text, f.why))
        }
    }
}

fn wait(poll: &str) -> String {
    // A name of its own for each poll.
    let name: String = poll.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("W{name}:\n{poll}\nsetp.eq.u32 %q, %v, 0;\n@%q bra W{name};\n")
}

const DATA: &str = "st.global.u32 [%a], 5;\n";
const LOAD: &str = "ld.global.u32 %v, [%a];\nst.global.u32 [%a+8], %v;\n";

#[test]
fn flags_are_stored_exchanged_and_compared() {
    let gives = [
        "st.release.gpu.global.u32 [%a+4], 1;",
        "atom.release.gpu.global.exch.b32 %v, [%a+4], 1;",
        "atom.acq_rel.gpu.global.cas.b32 %v, [%a+4], 0, 1;",
        "fence.acq_rel.gpu;\nst.relaxed.gpu.global.u32 [%a+4], 1;",
        "membar.gl;\nst.volatile.global.u32 [%a+4], 1;",
        // A counter that others add to goes on releasing, and so does a store of the same thread.
        "st.release.gpu.global.u32 [%a+4], 1;\nred.relaxed.gpu.global.add.u32 [%a+4], 1;",
        "st.release.gpu.global.u32 [%a+4], 1;\nst.relaxed.gpu.global.u32 [%a+4], 2;",
    ];
    let polls = [
        "ld.acquire.gpu.global.u32 %v, [%a+4];",
        "ld.acquire.sys.global.u32 %v, [%a+4];",
        "atom.acquire.gpu.global.add.u32 %v, [%a+4], 0;",
        "atom.acq_rel.gpu.global.cas.b32 %v, [%a+4], 1, 1;",
    ];
    let found = Ok(vec![5, 0, 5]);
    let shown = |r: Result<Vec<u32>, String>| r.map(|v| vec![v[0], 0, v[2]]);
    for give in gives {
        for poll in polls {
            assert_eq!(shown(pair(&format!("{DATA}{give}"), &(wait(poll) + LOAD))), found, "{give} {poll}");
        }
        let fenced = wait("ld.relaxed.gpu.global.u32 %v, [%a+4];") + "fence.sc.gpu;\n" + LOAD;
        assert_eq!(shown(pair(&format!("{DATA}{give}"), &fenced)), found, "{give}");
        // What comes after the release is not released.
        let late = pair(&format!("{give}\n{DATA}"), &(wait(polls[0]) + LOAD)).unwrap_err();
        assert!(late.contains("offset 0 of an allocation of 32 bytes is "), "{late}");
    }
    let take = wait(polls[0]) + LOAD;
    for weak in [
        "st.relaxed.gpu.global.u32 [%a+4], 1;",
        "atom.relaxed.gpu.global.exch.b32 %v, [%a+4], 1;",
        // A failed comparison releases nothing.
        "atom.release.gpu.global.cas.b32 %v, [%a+4], 9, 1;\nst.relaxed.gpu.global.u32 [%a+4], 1;",
        "fence.proxy.alias;\nst.relaxed.gpu.global.u32 [%a+4], 1;",
    ] {
        let why = pair(&format!("{DATA}{weak}"), &take).unwrap_err();
        let said =
            "offset 0 of an allocation of 32 bytes is read, block number 0 of the same launch wrote it";
        assert!(why.starts_with("ld.global.u32") && why.contains(said), "{why}");
    }
    // The flag itself is weak on one side; a weak read of it after the acquire is ordered.
    assert!(pair(&format!("{DATA}st.global.u32 [%a+4], 1;"), &take).unwrap_err().starts_with("ld.acquire"));
    let again = wait(polls[0]) + "ld.global.u32 %v, [%a+4];\nst.global.u32 [%a+4], 0;\n";
    for give in gives.iter().take(5) {
        assert!(pair(give, &again).is_ok(), "{give}");
    }
}

/// A relaxed store by another ends what was released before, an atomic operation does not.
#[test]
fn a_store_ends_a_release_and_an_atomic_operation_does_not() {
    let give = format!(
        "{DATA}st.release.gpu.global.u32 [%a+4], 1;\n{}",
        wait("ld.acquire.gpu.global.u32 %v, [%a+12];")
    );
    let last = "ld.acquire.gpu.global.u32 %v, [%a+4];\n";
    let take = |how: &str| wait("ld.relaxed.gpu.global.u32 %v, [%a+4];") + how + last + LOAD;
    let done = "\nst.release.gpu.global.u32 [%a+12], 1;";
    assert!(pair(&give, &(take("red.relaxed.gpu.global.add.u32 [%a+4], 1;\n") + done)).is_ok());
    let why = pair(&give, &(take("st.relaxed.gpu.global.u32 [%a+4], 3;\n") + done)).unwrap_err();
    assert!(why.starts_with("ld.global.u32"), "{why}");
}

#[test]
fn atomic_operations_and_narrow_accesses() {
    let done = "st.release.gpu.global.u32 [%a+16], 1;";
    let add = "red.global.add.u32 [%a], 1;";
    assert!(pair(&format!("{add}{done}"), add).is_ok());
    assert!(pair(&format!("{add}{done}"), "ld.relaxed.gpu.global.u32 %v, [%a];").is_ok());
    assert!(pair(&format!("{add}{done}"), "ld.global.u32 %v, [%a];").unwrap_err().contains("is read"));
    assert!(pair(&format!("{DATA}{done}"), add).unwrap_err().starts_with("red.global"));
    // Halves of a word are apart; the same half is not, nor is the whole.
    let (low, high) = ("st.global.u16 [%a], %h;", "st.global.u16 [%a+2], %h;");
    assert_eq!(pair(&format!("{low}{done}"), high).unwrap()[0], 0x0007_0007);
    assert!(pair(&format!("{high}{done}"), high).unwrap_err().contains("offset 2 of"));
    assert!(pair(&format!("{high}{done}"), "ld.global.u32 %v, [%a];").unwrap_err().contains("offset 0 of"));
    assert!(pair(&format!("{DATA}{done}"), high).unwrap_err().contains("is written"));
}

/// A pipeline between many blocks reuses its memory: sets of accesses come and go.
#[test]
fn many_steps() {
    assert_eq!(run(&steps(CLEAN, CLEAN, false), 3000).map(|y| y.len()), Ok((BLOCKS * THREADS) as usize));
}
