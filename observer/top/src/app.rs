//! What is shown, and what keys change of it.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::{
    calls::{Call, Key, calls},
    clean::clean,
    column::{Column, Order},
    document::Document,
    history::History,
    palette::Palette,
};

/// Maximum number of characters of a filter.
const MAX_FILTER: usize = 200;
/// Rows of a page.
const PAGE: isize = 10;

/// How it begins.
#[derive(Debug)]
pub struct Options {
    /// Where the figures come from, as shown.
    pub source: String,
    /// Order of the rows.
    pub order: Order,
    /// Part of the names that are shown.
    pub filter: String,
    /// What it looks like.
    pub palette: Palette,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// End.
    Quit,
}

/// What is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Nothing: what is shown stands still.
    pub is_paused: bool,
    /// The history too.
    pub wants_history: bool,
}

/// What is shown.
#[derive(Debug)]
pub struct App {
    pub(crate) source: String,
    pub(crate) palette: Palette,
    pub(crate) order: Order,
    pub(crate) filter: String,
    /// The filter before it was edited, while it is.
    pub(crate) edited: Option<String>,
    pub(crate) is_paused: bool,
    pub(crate) is_helping: bool,
    pub(crate) view: View,
    pub(crate) loaded: Loaded,
    pub(crate) history: Option<History>,
    pub(crate) lost: Option<Lost>,
    /// The selected row; the first one until another is chosen.
    selected: Option<Key>,
    /// Where it was when it was drawn last.
    pub(crate) place: usize,
    /// First row, and first line of the node's, in view.
    pub(crate) offset: usize,
    pub(crate) scrolled: usize,
    pub(crate) width: u16,
}

/// What fills the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Calls,
    Call,
    Node,
}

/// The last document, its edges as rows.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) document: Document,
    pub(crate) calls: Vec<Call>,
}

/// Why there is no newer document.
#[derive(Debug)]
pub(crate) struct Lost {
    /// Seconds since 1970.
    pub(crate) since: f64,
    pub(crate) reason: String,
}

impl Loaded {
    fn of(mut document: Document) -> Self {
        let calls = calls(std::mem::take(&mut document.edges));
        Self { document, calls }
    }
}

impl App {
    /// Shows a document.
    #[must_use]
    pub fn new(Options { source, order, filter, palette }: Options, document: Document) -> Self {
        Self {
            source: clean(&source),
            palette,
            order,
            filter: clean(&filter),
            edited: None,
            is_paused: false,
            is_helping: false,
            view: View::Calls,
            loaded: Loaded::of(document),
            history: None,
            lost: None,
            selected: None,
            place: 0,
            offset: 0,
            scrolled: 0,
            width: 0,
        }
    }

    /// Shows a newer document, unless what is shown stands still.
    pub fn on_document(&mut self, document: Document) {
        self.lost = None;
        if !self.is_paused {
            self.loaded = Loaded::of(document);
        }
    }

    /// Shows a newer history, likewise.
    pub fn on_history(&mut self, history: History) {
        if !self.is_paused || self.history.is_none() {
            self.history = Some(history);
        }
    }

    /// Shows that nothing could be read at a time in seconds since 1970.
    pub fn on_lost(&mut self, at: f64, reason: &str) {
        let since = self.lost.take().map_or(at, |lost| lost.since);
        self.lost = Some(Lost { since, reason: clean(reason) });
    }

    /// Returns what is to be read.
    #[must_use]
    pub fn demand(&self) -> Demand {
        Demand { is_paused: self.is_paused, wants_history: self.view == View::Call }
    }

    /// Does what a key stands for.
    pub fn on_key(&mut self, key: KeyEvent) -> Flow {
        if key.kind == KeyEventKind::Release {
            return Flow::Continue;
        }
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Flow::Quit,
            _ if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => {}
            code if self.edited.is_some() => self.edit(code),
            KeyCode::Char('q') => return Flow::Quit,
            KeyCode::Char('?') | KeyCode::F(1) => self.is_helping = !self.is_helping,
            KeyCode::Esc if self.is_helping => self.is_helping = false,
            _ if self.is_helping => {}
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            code => match self.view {
                View::Calls => self.on_key_of_calls(code),
                View::Call => self.on_key_of_call(code),
                View::Node => self.on_key_of_node(code),
            },
        }
        Flow::Continue
    }

    /// Returns the rows that match the filter, in order.
    pub(crate) fn rows(&self) -> Vec<&Call> {
        let filter = self.filter.trim().to_lowercase();
        let calls = self.loaded.calls.iter();
        let mut rows: Vec<&Call> = calls.filter(|call| call.matches(&filter)).collect();
        rows.sort_by(|one, other| self.order.compare(one, other));
        rows
    }

    /// Returns the place of the selected row: if it is gone, that of the one that took it.
    pub(crate) fn place_in(&self, rows: &[&Call]) -> Option<usize> {
        let last = rows.len().checked_sub(1)?;
        let Some(selected) = &self.selected else { return Some(0) };
        Some(rows.iter().position(|call| call.key() == *selected).unwrap_or(self.place.min(last)))
    }

    /// Returns the selected row, whether or not it still matches the filter.
    pub(crate) fn selected(&self) -> Option<&Call> {
        let selected = self.selected.as_ref()?;
        self.loaded.calls.iter().find(|call| call.key() == *selected)
    }

    fn edit(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.edited = None,
            KeyCode::Esc => self.filter = self.edited.take().unwrap_or_default(),
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.chars().count() < MAX_FILTER => {
                self.filter.push_str(&clean(c.encode_utf8(&mut [0; 4])));
            }
            _ => {}
        }
    }

    fn on_key_of_calls(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char('s') => self.order = self.order.next(Column::shown(self.width)),
            KeyCode::Char('S') => self.order = self.order.reversed(),
            KeyCode::Char('/') => self.edited = Some(self.filter.clone()),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab => self.view = View::Node,
            KeyCode::Enter => {
                self.select(0);
                if self.selected.is_some() {
                    self.view = View::Call;
                }
            }
            code => self.select_by(code),
        }
    }

    fn on_key_of_call(&mut self, code: KeyCode) {
        match code {
            KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace => self.view = View::Calls,
            KeyCode::Tab => self.view = View::Node,
            code => self.select_by(code),
        }
    }

    fn on_key_of_node(&mut self, code: KeyCode) {
        match code {
            KeyCode::Esc | KeyCode::Tab => self.view = View::Calls,
            code => self.scrolled = self.scrolled.saturating_add_signed(step(code).unwrap_or(0)),
        }
    }

    fn select_by(&mut self, code: KeyCode) {
        if let Some(step) = step(code) {
            self.select(step);
        }
    }

    /// Selects the row so many places further down.
    fn select(&mut self, step: isize) {
        let rows = self.rows();
        let Some(place) = self.place_in(&rows) else { return };
        let place = place.saturating_add_signed(step).min(rows.len().saturating_sub(1));
        let selected = rows.get(place).map(|call| call.key());
        (self.selected, self.place) = (selected, place);
    }
}

/// Returns how many places a key moves down.
const fn step(code: KeyCode) -> Option<isize> {
    match code {
        KeyCode::Up | KeyCode::Char('k') => Some(-1),
        KeyCode::Down | KeyCode::Char('j') => Some(1),
        KeyCode::PageUp => Some(-PAGE),
        KeyCode::PageDown => Some(PAGE),
        KeyCode::Home | KeyCode::Char('g') => Some(isize::MIN),
        KeyCode::End | KeyCode::Char('G') => Some(isize::MAX),
        _ => None,
    }
}
