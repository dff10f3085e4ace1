//! Network namespaces and running things inside them.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};

/// A network namespace: one with a name (`ip netns`), deleted when dropped, or that of this process.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    handle: File,
    is_own: bool,
}

impl Namespace {
    /// Creates it, with its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        let path = Path::new("/run/netns").join(name);
        let handle = File::open(&path).with_context(|| format!("{} cannot be opened", path.display()))?;
        let namespace = Self { name: name.to_owned(), handle, is_own: false };
        namespace.batch("link set lo up")?;
        Ok(namespace)
    }

    /// Returns the namespace of this process, which is not deleted.
    pub fn own() -> Result<Self> {
        let handle = File::open("/proc/self/ns/net").context("own network namespace")?;
        Ok(Self { name: "own".to_owned(), handle, is_own: true })
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip` commands inside.
    pub fn batch(&self, lines: &str) -> Result<()> {
        run_with_input("ip", &["-netns", &self.name, "-batch", "-"], lines).map(|_| ())
    }

    /// Runs `action` on a thread inside; sockets it makes stay inside for good, wherever they are used later.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T> {
        let descriptor = self.handle.as_raw_fd();
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    enter(descriptor).with_context(|| format!("namespace {} cannot be entered", self.name))?;
                    Ok(action())
                })
                .join()
                .expect("the action does not panic")
        })
    }

    /// Makes `command` start inside, in the cgroup at `cgroup`, and as `user` (uid and gid) if given.
    pub fn place(&self, command: &mut Command, cgroup: &Path, user: Option<User>) -> Result<()> {
        let processes = cgroup.join("cgroup.procs");
        let processes = File::options()
            .write(true)
            .open(&processes)
            .with_context(|| format!("{} cannot be opened", processes.display()))?;
        let handle = self.handle.try_clone().context("namespace handle")?;
        // SAFETY: the closure makes plain system calls on descriptors opened before the fork, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                check(libc::write(processes.as_raw_fd(), c"0".as_ptr().cast(), 1) as i64)?;
                enter(handle.as_raw_fd())?;
                user.map_or(Ok(()), User::become_it)
            });
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.is_own {
            return;
        }
        if let Err(error) = run("ip", &["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// User of a process.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// uid and gid.
    pub id: u32,
    /// Keeps CAP_NET_ADMIN, which transparent sockets need.
    pub network_administrator: bool,
}

impl User {
    fn become_it(self) -> io::Result<()> {
        const CAP_NET_ADMIN: libc::c_ulong = 12;
        // SAFETY: plain system calls without pointers to the program's memory.
        unsafe {
            if self.network_administrator {
                check(libc::prctl(libc::PR_SET_KEEPCAPS, 1))?;
            }
            check(libc::setgroups(0, std::ptr::null()))?;
            check(libc::setgid(self.id))?;
            check(libc::setuid(self.id))?;
        }
        if self.network_administrator {
            let header = [0x2008_0522_u32, 0];
            let only = 1_u32 << CAP_NET_ADMIN;
            let sets = [[only, only, only], [0, 0, 0]];
            // SAFETY: header and data have the layout of capset(2), version 3.
            unsafe {
                check(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()))?;
                check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN, 0, 0))?;
            }
        }
        Ok(())
    }
}

/// Runs a command to its end and returns its standard output; its standard error is in the error.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with_input(program, arguments, "")
}

/// Runs a command like [`run`], with text on its standard input.
pub fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    finish(Command::new(program).args(arguments), input)
}

/// Runs a prepared command like [`run_with_input`].
pub fn finish(command: &mut Command, input: &str) -> Result<String> {
    let named = format!("`{}`", format!("{command:?}").replace('"', ""));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{named} cannot be started"))?;
    // A command that does not read its input may close it early.
    let _ = io::Write::write_all(&mut child.stdin.take().expect("piped above"), input.as_bytes());
    let output = child.wait_with_output().with_context(|| format!("{named} cannot be awaited"))?;
    let [error, answer] = [&output.stderr, &output.stdout].map(|text| String::from_utf8_lossy(text));
    ensure!(output.status.success(), "{named} ended with {}: {} {}", output.status, error.trim(), answer.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn enter(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: no pointers; a wrong descriptor is an error.
    check(unsafe { libc::setns(descriptor, libc::CLONE_NEWNET) })
}

fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
