//! Packet faults on a pod's loopback: every packet passes an NFQUEUE before TCP sees it. The fault of each packet
//! comes from a seeded generator, so that a run is repeatable as far as the order of packets is.

use std::{
    collections::VecDeque,
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nfq::{Message, Queue, Verdict};

use crate::{mesh::Workload, net::finish};

const QUEUE: u16 = 7;
/// Enough for the headers; the packet itself is passed on whole.
const COPIED: u16 = 128;
/// Packets that may wait in the kernel, more than a few clients have in flight.
const WAITING: u32 = 65_536;
const IDLE: Duration = Duration::from_micros(300);

/// Rates of faults, per thousand packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct PacketFaults {
    /// Dropped, handshake and empty acknowledgements included.
    pub lost: u64,
    /// Held until the packet behind them has passed, or for a few milliseconds if none comes.
    pub swapped: u64,
    /// Held for longer than the retransmission timeout, so that they arrive twice.
    pub late: u64,
    /// How long every packet is held.
    pub delay: Duration,
}

/// Longer than the retransmission timeout on loopback, 200 ms.
const LATE: Duration = Duration::from_millis(260);
const SWAPPED: Duration = Duration::from_millis(5);

/// A loopback with faults until it is dropped.
#[derive(Debug)]
pub struct FaultyLoopback {
    workload: Arc<Workload>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FaultyLoopback {
    /// Begins the faults on the loopback of `workload`.
    pub fn start(workload: &Arc<Workload>, faults: PacketFaults, seed: u64) -> Result<Self> {
        let queue = workload.net.enter(open)?.context("NFQUEUE (CONFIG_NETFILTER_NETLINK_QUEUE)")?;
        let ended = Arc::new(AtomicBool::new(false));
        let thread = {
            let ended = Arc::clone(&ended);
            thread::spawn(move || Passing { queue, faults, random: Random(seed), held: VecDeque::new() }.run(&ended))
        };
        let loopback = Self { workload: Arc::clone(workload), ended, thread: Some(thread) };
        loopback.rule("-A")?;
        Ok(loopback)
    }

    fn rule(&self, action: &str) -> Result<()> {
        for command in ["iptables-legacy", "ip6tables-legacy"] {
            let rule = format!("{action} INPUT -i lo -p tcp -j NFQUEUE --queue-num {QUEUE} --queue-bypass");
            finish(self.workload.command(command)?.args(rule.split(' ')), "")?;
        }
        Ok(())
    }
}

impl Drop for FaultyLoopback {
    fn drop(&mut self) {
        if let Err(error) = self.rule("-D") {
            eprintln!("{error:#}");
        }
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

fn open() -> std::io::Result<Queue> {
    let mut queue = Queue::open()?;
    queue.bind(QUEUE)?;
    queue.set_copy_range(QUEUE, COPIED)?;
    queue.set_queue_max_len(QUEUE, WAITING)?;
    // Packets as large as loopback has them.
    queue.set_recv_gso(QUEUE, true)?;
    queue.set_nonblocking(true);
    Ok(queue)
}

struct Passing {
    queue: Queue,
    faults: PacketFaults,
    random: Random,
    held: VecDeque<Held>,
}

struct Held {
    message: Message,
    until: Instant,
    /// Released as soon as another packet has passed.
    swapped: bool,
}

impl Passing {
    /// Runs until `ended` is set and no packet is held.
    fn run(mut self, ended: &AtomicBool) {
        loop {
            match self.queue.recv() {
                Ok(message) => self.decide(message),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if ended.load(Ordering::Relaxed) && self.held.is_empty() {
                        return;
                    }
                    sleep(IDLE);
                }
                // The queue was full and packets were dropped: a loss like others.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => panic!("NFQUEUE: {error}"),
            }
            let now = Instant::now();
            while let Some(at) = self.held.iter().position(|held| held.until <= now) {
                let held = self.held.remove(at).expect("found just now");
                self.pass(held.message, Verdict::Accept);
            }
        }
    }

    fn decide(&mut self, message: Message) {
        let PacketFaults { lost, swapped, late, delay } = self.faults;
        let draw = self.random.below(1000);
        let now = Instant::now();
        if draw < lost {
            self.pass(message, Verdict::Drop);
        } else if draw < lost + swapped {
            self.held.push_back(Held { message, until: now + SWAPPED, swapped: true });
        } else if draw < lost + swapped + late {
            self.held.push_back(Held { message, until: now + LATE, swapped: false });
        } else if delay > Duration::ZERO {
            self.held.push_back(Held { message, until: now + delay, swapped: false });
        } else {
            self.pass(message, Verdict::Accept);
            while let Some(at) = self.held.iter().position(|held| held.swapped) {
                let held = self.held.remove(at).expect("found just now");
                self.pass(held.message, Verdict::Accept);
            }
        }
    }

    fn pass(&mut self, mut message: Message, verdict: Verdict) {
        message.set_verdict(verdict);
        self.queue.verdict(message).expect("a verdict on a packet that is held");
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
