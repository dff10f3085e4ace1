//! One emulated virtual machine, without KVM. Its first process reports the result on the console, which is a file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::image::INIT;

/// Begins the line in which the first process reports success.
const VERDICT: &str = "verdict:";

/// Limits the time of one machine. Emulated on a busy processor it takes three minutes.
const LIMIT: Duration = Duration::from_secs(600);
/// Last lines of the console in an error.
const TAIL: usize = 40;

/// A machine to run.
pub(super) struct Machine<'a> {
    /// The kernel.
    pub(super) kernel: &'a Path,
    /// Initial file system.
    pub(super) image: &'a Path,
    /// Kernel parameters.
    pub(super) options: &'a str,
    /// Task of its first process.
    pub(super) task: String,
    /// File of the console.
    pub(super) console: PathBuf,
}

impl Machine<'_> {
    /// Runs it to its end; returns the report of its first process.
    pub(super) fn run(&self) -> Result<String> {
        let mut machine = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-cpu", "max", "-m", "2048", "-smp", "2"])
            .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial"])
            .arg(format!("file:{}", self.console.display()))
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.image)
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 rdinit={INIT} {} -- {}", self.options, self.task))
            .stdin(Stdio::null())
            .spawn()
            .context("qemu-system-x86_64 (package qemu-system-x86) cannot be started")?;
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = machine.try_wait()? {
                break status;
            }
            if Instant::now() > end {
                machine.kill()?;
                machine.wait()?;
                bail!("not done after {} s; {}", LIMIT.as_secs(), self.tail());
            }
            sleep(Duration::from_millis(100));
        };
        let console = self.read();
        let verdict = console.lines().find_map(|line| line.trim().strip_prefix(VERDICT));
        match verdict {
            Some(said) if status.success() => Ok(said.trim().to_owned()),
            _ => bail!("it ended with {status} and without success; {}", self.tail()),
        }
    }

    fn read(&self) -> String {
        fs::read(&self.console).map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn tail(&self) -> String {
        let console = self.read();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n    ");
        format!("the end of {}:\n    {tail}", self.console.display())
    }
}
