//! A real terminal without a window: Debian's tmux, steered by its commands.

pub mod picture;

use std::{
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{tools, wait::wait_until};

/// Limits the time until something is on the screen.
const SHOW_TIMEOUT: Duration = Duration::from_secs(30);
/// What the shell writes when it awaits a command.
const PROMPT: &str = "mesh$";

/// A terminal with a shell in it; ended when dropped.
#[derive(Debug)]
pub struct Terminal {
    tmux: PathBuf,
    socket: String,
}

impl Terminal {
    /// Opens a terminal of this many columns and lines.
    pub fn open(size: (u16, u16)) -> Result<Self> {
        static OPENED: AtomicU32 = AtomicU32::new(0);
        let socket = format!("mesh-{}-{}", process::id(), OPENED.fetch_add(1, Ordering::Relaxed));
        let terminal = Self { tmux: tools::require("tmux")?, socket };
        let [width, height] = [size.0, size.1].map(|length| length.to_string());
        let shell = format!("PS1='{PROMPT} ' exec sh");
        terminal.tmux(&["-u", "-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, &shell])?;
        // It would take a line.
        terminal.tmux(&["set-option", "-g", "status", "off"])?;
        terminal.wait("a shell", |screen| screen.contains(PROMPT))?;
        Ok(terminal)
    }

    /// Types a text.
    pub fn write(&self, text: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", "--", text]).map(drop)
    }

    /// Presses a key, as tmux names it.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// Runs a command in the shell.
    pub fn run(&self, command: &str) -> Result<()> {
        self.write(command)?;
        self.press("Enter")
    }

    /// Changes the size.
    pub fn resize(&self, (width, height): (u16, u16)) -> Result<()> {
        self.tmux(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]).map(drop)
    }

    /// Returns what is on the screen, a line each.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Returns the same with escape sequences for colours and styles.
    pub fn styled_screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Returns whether a program has a screen of its own, beside the one with the shell's lines.
    pub fn has_other_screen(&self) -> Result<bool> {
        Ok(self.tmux(&["display-message", "-p", "#{alternate_on}"])?.trim() == "1")
    }

    /// Waits until the screen is as wanted, and returns it.
    pub fn wait(&self, what: &str, is_shown: impl Fn(&str) -> bool) -> Result<String> {
        wait_until(what, SHOW_TIMEOUT, || {
            let screen = self.screen()?;
            ensure!(is_shown(&screen), "{screen}");
            Ok(screen)
        })
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.tmux);
        // Its server has the locale of its first client.
        command
            .env("LC_ALL", "C.UTF-8")
            .env_remove("TMUX")
            .env_remove("NO_COLOR")
            .args(["-L", &self.socket])
            .args(arguments);
        let output = command.output().context("tmux")?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).context("a screen is UTF-8")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.tmux(&["kill-server"]);
    }
}
