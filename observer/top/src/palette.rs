//! What rows and words look like. No meaning depends on colour: marks and words say the same.

use ratatui::style::{Color, Modifier, Style};

use crate::calls::Health;

/// Styles, with or without colours.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Whether colours are wanted.
    pub is_coloured: bool,
}

impl Palette {
    pub(crate) const fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(crate) const fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub(crate) const fn aside(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(crate) fn course(self) -> Style {
        self.coloured(Style::new(), Color::Cyan)
    }

    pub(crate) fn of(self, health: Health) -> Style {
        match health {
            Health::Idle => self.aside(),
            Health::Good => Style::new(),
            // Apart in brightness, too.
            Health::Warning => self.coloured(Style::new(), Color::Yellow),
            Health::Bad => self.coloured(self.title(), Color::Red),
        }
    }

    fn coloured(self, style: Style, colour: Color) -> Style {
        if self.is_coloured { style.fg(colour) } else { style }
    }
}

/// Returns what stands before a row.
pub(crate) const fn mark(health: Health) -> &'static str {
    match health {
        Health::Idle | Health::Good => "",
        Health::Warning => "!",
        Health::Bad => "!!",
    }
}
