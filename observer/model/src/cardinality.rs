//! Which series are exposed, and totals that never go back.
//!
//! Many *feeds* (a kernel series of one process and address) can belong to one *account* (a label set). An account grows
//! by its feeds' differences, so a feed that ends, restarts or moves to other labels takes nothing back. An account whose
//! sidecars are gone and that has been idle for the retention time is no longer exposed; its total is kept as long as the
//! kernel still reports a feed of it, so it comes back with its whole past, and is forgotten with its last feed.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    counter::Figures,
    histogram::{Cell, PackedCells},
};

/// How long a series without a sidecar is exposed after it last changed, unless the caller says otherwise.
pub const DEFAULT_RETENTION: Duration = Duration::from_mins(15);

/// Accounts under labels `L` fed by series under keys `K`.
#[derive(Debug)]
pub struct Accounts<K, L, F> {
    feeds: HashMap<K, Feed<F>>,
    accounts: Vec<Account<L, F>>,
    by_labels: HashMap<Arc<L>, usize>,
    round: u32,
    /// Accounts that ceased to be exposed.
    retired: u64,
    /// Feeds whose figures went back.
    resets: u64,
    /// Something that the feeds do not tell has changed since [`Accounts::take_changed`].
    changed: bool,
}

/// Accounts as they are kept over a restart, with other forms of keys and labels.
#[derive(Debug, Serialize, Deserialize)]
pub struct RememberedAccounts<K, L, F> {
    /// With the account of each, and its figures if they are other than the account's.
    feeds: Vec<(K, usize, Option<Arc<F>>)>,
    accounts: Vec<RememberedAccount<L, F>>,
    retired: u64,
    resets: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct RememberedAccount<L, F> {
    labels: L,
    total: Arc<F>,
    created: SystemTime,
    changed: SystemTime,
    exposed: bool,
}

#[derive(Debug)]
struct Feed<F> {
    account: usize,
    figures: Arc<F>,
    /// Cells at the end of the last interval.
    cells: PackedCells,
    seen: u32,
}

/// One label set with its totals.
#[derive(Debug)]
pub struct Account<L, F> {
    /// The labels.
    pub labels: Arc<L>,
    /// Totals, cumulative since `created`. Shared with the feed where there is only one.
    pub total: Arc<F>,
    /// Values of the last reporting interval by cell; `None` if there were none or cells are not read.
    pub recent: Option<Arc<PackedCells>>,
    /// When it was 0.
    pub created: SystemTime,
    changed: SystemTime,
    /// A feed of it has a running sidecar.
    alive: bool,
    /// A feed of it is still reported.
    fed: bool,
    exposed: bool,
}

impl<K, L, F> Default for Accounts<K, L, F> {
    fn default() -> Self {
        Self {
            feeds: HashMap::new(),
            accounts: Vec::new(),
            by_labels: HashMap::new(),
            round: 0,
            retired: 0,
            resets: 0,
            changed: false,
        }
    }
}

impl<K: Eq + Hash + Clone, L: Eq + Hash, F: Figures> Accounts<K, L, F> {
    /// As of the last round.
    pub fn remember<RK, RL>(
        &self,
        key: impl Fn(&K) -> RK,
        mut labels: impl FnMut(&L) -> RL,
    ) -> RememberedAccounts<RK, RL, F> {
        let feeds = self.feeds.iter().map(|(own, Feed { account, figures, .. })| {
            let is_total = Arc::ptr_eq(figures, &self.accounts[*account].total);
            (key(own), *account, (!is_total).then(|| figures.clone()))
        });
        let accounts = self.accounts.iter().map(|own| RememberedAccount {
            labels: labels(&own.labels),
            total: own.total.clone(),
            created: own.created,
            changed: own.changed,
            exposed: own.exposed,
        });
        RememberedAccounts {
            feeds: feeds.collect(),
            accounts: accounts.collect(),
            retired: self.retired,
            resets: self.resets,
        }
    }

    /// Goes on from there; `None` if it is not whole.
    pub fn resume<RK, RL>(
        remembered: RememberedAccounts<RK, RL, F>,
        key: impl Fn(RK) -> K,
        labels: impl Fn(&RL) -> Option<L>,
    ) -> Option<Self> {
        let RememberedAccounts { feeds, accounts, retired, resets } = remembered;
        let mut own = Self { retired, resets, ..Self::default() };
        for RememberedAccount { labels: account, total, created, changed, exposed } in accounts {
            let labels = Arc::new(labels(&account)?);
            own.by_labels.insert(labels.clone(), own.accounts.len());
            let (recent, alive, fed) = (None, false, false);
            own.accounts.push(Account { labels, total, recent, created, changed, alive, fed, exposed });
        }
        for (feed, account, figures) in feeds {
            let total = &own.accounts.get(account)?.total;
            let figures = figures.unwrap_or_else(|| total.clone());
            own.feeds.insert(key(feed), Feed { account, figures, cells: PackedCells::default(), seen: 0 });
        }
        Some(own)
    }

    /// Whether what must be remembered is other than what the feeds tell, since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Begins a round. With `closes_interval`, the values of the interval before are forgotten.
    pub fn begin(&mut self, closes_interval: bool) {
        self.round = self.round.wrapping_add(1);
        for account in &mut self.accounts {
            (account.alive, account.fed) = (false, false);
            if closes_interval {
                account.recent = None;
            }
        }
    }

    /// Whether a feed is known to have exactly the figures that `same` accepts: then [`Accounts::keep`] suffices.
    pub fn is_unchanged(&self, key: &K, same: impl FnOnce(&F) -> bool) -> bool {
        self.feeds.get(key).is_some_and(|feed| same(&feed.figures))
    }

    /// Says that a feed is still there, its figures unchanged.
    pub fn keep(&mut self, key: &K, alive: bool) {
        if let Some(feed) = self.feeds.get_mut(key) {
            feed.seen = self.round;
            let account = &mut self.accounts[feed.account];
            account.fed = true;
            account.alive |= alive;
        }
    }

    /// Takes a feed's new figures. `labels` is asked for feeds that are new; `since` is when those were certainly 0.
    pub fn feed(&mut self, key: K, figures: Arc<F>, alive: bool, at: Moment, labels: impl FnOnce() -> L) {
        let previous = self.feeds.remove(&key);
        let account = match &previous {
            Some(feed) => feed.account,
            None => self.account(labels(), at),
        };
        let own = &mut self.accounts[account];
        own.fed = true;
        own.alive |= alive;
        let mut cells = PackedCells::default();
        self.changed |= previous.is_none() || !own.exposed;
        match previous {
            None => own.gain(None, &figures, F::clone(&figures), at),
            Some(feed) => {
                cells = feed.cells;
                match feed.figures.difference(&figures) {
                    Some(grown) if grown.is_zero() => {}
                    Some(grown) => own.gain(Some(&feed.figures), &figures, grown, at),
                    None => {
                        self.resets += 1;
                        self.changed = true;
                        cells = PackedCells::default();
                        own.gain(None, &figures, F::clone(&figures), at);
                    }
                }
            }
        }
        self.feeds.insert(key, Feed { account, figures, cells, seen: self.round });
    }

    /// Takes a feed's cells at the end of an interval: what fell since the last ones is the account's.
    pub fn cells(&mut self, key: &K, newer: [&[Cell]; 3]) {
        let Some(feed) = self.feeds.get_mut(key) else { return };
        if feed.cells.equals(newer) {
            return;
        }
        let newer = PackedCells::new(newer);
        let fell = feed.cells.grown(&newer);
        feed.cells = newer;
        self.accounts[feed.account].fell(&Arc::new(fell));
    }

    /// Adds values of the last interval to the account of a feed, where they are known already.
    pub fn recent(&mut self, key: &K, fell: &Arc<PackedCells>) {
        if let Some(feed) = self.feeds.get(key) {
            self.accounts[feed.account].fell(fell);
        }
    }

    /// Gives every feed the labels that `labels` now says; what was counted before stays where it was counted.
    pub fn relabel(&mut self, at: Moment, mut labels: impl FnMut(&K) -> Option<L>) {
        let keys: Vec<K> = self.feeds.keys().cloned().collect();
        for key in keys {
            let Some(new) = labels(&key) else { continue };
            if *self.accounts[self.feeds[&key].account].labels == new {
                continue;
            }
            let account = self.account(new, at);
            self.changed = true;
            if let Some(feed) = self.feeds.get_mut(&key) {
                feed.account = account;
            }
        }
    }

    /// Ends a round: feeds that were not seen are gone (one that comes again counts from 0), and accounts nobody needs
    /// are retired or forgotten.
    pub fn end(&mut self, now: SystemTime, retention: Duration) {
        let before = self.feeds.len();
        self.feeds.retain(|_, feed| feed.seen == self.round);
        self.changed |= self.feeds.len() != before;
        self.retire(now, retention);
    }

    /// Ends a round after which feeds that were not seen may come again where they were: they are kept as long as
    /// another feed keeps their account.
    pub fn end_with_absent_feeds(&mut self, now: SystemTime) {
        self.retire(now, Duration::ZERO);
    }

    fn retire(&mut self, now: SystemTime, retention: Duration) {
        let mut forgotten = false;
        for account in &mut self.accounts {
            let idle = now.duration_since(account.changed).unwrap_or_default() >= retention;
            if idle && !account.alive && account.exposed {
                account.exposed = false;
                self.retired += 1;
                self.changed = true;
            }
            if account.alive {
                account.exposed = true;
            }
            forgotten |= !account.exposed && !account.fed;
        }
        if forgotten {
            self.changed = true;
            self.forget();
        }
    }

    /// Accounts that are exposed and count something, in order of their first appearance.
    pub fn exposed(&self) -> impl Iterator<Item = &Account<L, F>> {
        self.accounts.iter().filter(|account| account.exposed && !account.total.is_zero())
    }

    /// Accounts that ceased to be exposed, ever.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Feeds whose figures went back, ever.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets
    }

    fn account(&mut self, labels: L, at: Moment) -> usize {
        if let Some(index) = self.by_labels.get(&labels) {
            return *index;
        }
        let labels = Arc::new(labels);
        self.by_labels.insert(labels.clone(), self.accounts.len());
        self.accounts.push(Account {
            labels,
            total: Arc::new(F::default()),
            recent: None,
            created: at.before,
            changed: at.now,
            alive: true,
            fed: true,
            exposed: true,
        });
        self.accounts.len() - 1
    }

    fn forget(&mut self) {
        let mut kept = 0..;
        let moved: Vec<Option<usize>> =
            self.accounts.iter().map(|own| (own.exposed || own.fed).then(|| kept.next()).flatten()).collect();
        self.accounts.retain(|account| account.exposed || account.fed);
        self.by_labels = self.accounts.iter().enumerate().map(|(index, own)| (own.labels.clone(), index)).collect();
        self.feeds.retain(|_, feed| moved[feed.account].map(|index| feed.account = index).is_some());
        // A crowd that has gone leaves no room behind.
        self.accounts.shrink_to(2 * self.accounts.len());
        self.feeds.shrink_to(2 * self.feeds.len());
    }
}

impl<L, F: Figures> Account<L, F> {
    /// Grows by `grown`, which took a feed from `older` to `newer`.
    fn gain(&mut self, older: Option<&Arc<F>>, newer: &Arc<F>, grown: F, at: Moment) {
        // With one feed and no past of others the total is the feed's own figures: one copy instead of two.
        let only = match older {
            Some(older) => Arc::ptr_eq(&self.total, older),
            None => self.total.is_zero(),
        };
        if only {
            self.total = newer.clone();
        } else {
            Arc::make_mut(&mut self.total).add(&grown);
        }
        self.changed = at.now;
        self.exposed = true;
    }

    fn fell(&mut self, cells: &Arc<PackedCells>) {
        self.recent = Some(match &self.recent {
            Some(recent) => Arc::new(recent.plus(cells)),
            None => cells.clone(),
        });
    }
}

/// When a round takes place.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// This round.
    pub now: SystemTime,
    /// The round before: what is new now was certainly 0 then.
    pub before: SystemTime,
}
