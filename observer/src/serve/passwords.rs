//! Basic authentication: bcrypt costs as much CPU as it was made to, so what it found is remembered, and what it refuses
//! gets a small share of one CPU.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::header::HeaderValue;
use ring::hmac::{self, HMAC_SHA256, Key};
use tokio::{sync::Semaphore, task::spawn_blocking, time::sleep};

/// Verdicts that are remembered of each kind.
const REMEMBERED: usize = 128;
/// Requests with unknown passwords that may wait for a verdict; further ones are turned away.
const MAX_WAITING: usize = 8;
/// After a wrong password the next one waits this many times as long as the verdict took: 10 % of a CPU.
const PAUSE: u32 = 9;
/// Compared with the password of a user who does not exist, so that the time does not show that. Nobody has its password.
const DECOY: &str = "$2b$10$7EqJtq98hPqEX7fNZaFWoOhi5BWX4Z1Gv2Vb9Jm5i0JvXkQZ0sC5W";

/// Outcome of a request's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They are right, or none are needed.
    Accepted,
    /// They are missing or wrong.
    Refused,
    /// Too many requests wait for a verdict.
    Busy,
}

/// The users, and what was found about passwords so far.
pub(super) struct Passwords {
    users: BTreeMap<String, String>,
    /// Digests passwords, which are not kept.
    key: Key,
    accepted: Mutex<VecDeque<[u8; 32]>>,
    refused: Mutex<VecDeque<[u8; 32]>>,
    turn: Semaphore,
    waiting: Arc<Semaphore>,
}

impl Passwords {
    /// `users` has a bcrypt hash by user; without any, everybody is accepted.
    pub(super) fn new(users: BTreeMap<String, String>) -> Self {
        let random = RandomState::new();
        let key: Vec<u8> = (0..4).flat_map(|part: u8| random.hash_one(part).to_ne_bytes()).collect();
        let (accepted, refused) = (Mutex::default(), Mutex::default());
        let (turn, waiting) = (Semaphore::new(1), Arc::new(Semaphore::new(MAX_WAITING)));
        Self { users, key: Key::new(HMAC_SHA256, &key), accepted, refused, turn, waiting }
    }

    /// Returns whether there are users.
    pub(super) fn are_needed(&self) -> bool {
        !self.users.is_empty()
    }

    /// Judges an `Authorization` header.
    pub(super) async fn check(self: &Arc<Self>, authorization: Option<&HeaderValue>) -> Verdict {
        if !self.are_needed() {
            return Verdict::Accepted;
        }
        let Some((user, password)) = authorization.and_then(credentials) else { return Verdict::Refused };
        let digest = self.digest(&user, &password);
        if contains(&self.accepted, &digest) {
            return Verdict::Accepted;
        }
        if contains(&self.refused, &digest) {
            return Verdict::Refused;
        }
        let Ok(place) = self.waiting.clone().try_acquire_owned() else { return Verdict::Busy };
        let (sender, verdict) = tokio::sync::oneshot::channel();
        let own = self.clone();
        // A client that leaves does not end its verdict, nor the pause after it.
        let task = async move {
            let Ok(_turn) = own.turn.acquire().await else { return };
            if sender.is_closed() {
                return;
            }
            let began = Instant::now();
            let is_right = own.clone().verify(user, password).await;
            remember(if is_right { &own.accepted } else { &own.refused }, digest);
            let took = began.elapsed();
            let _ = sender.send(is_right);
            drop(place);
            if !is_right {
                sleep(took * PAUSE).await;
            }
        };
        tokio::spawn(task);
        if verdict.await == Ok(true) { Verdict::Accepted } else { Verdict::Refused }
    }

    async fn verify(self: Arc<Self>, user: String, password: Vec<u8>) -> bool {
        let verify = move || {
            let hash = self.users.get(&user);
            let is_right = bcrypt::verify(password, hash.map_or(DECOY, String::as_str)).unwrap_or(false);
            is_right && hash.is_some()
        };
        spawn_blocking(verify).await.unwrap_or(false)
    }

    fn digest(&self, user: &str, password: &[u8]) -> [u8; 32] {
        // A user's name has no colon.
        let tag = hmac::sign(&self.key, &[user.as_bytes(), b":", password].concat());
        tag.as_ref().try_into().unwrap_or_default()
    }
}

fn contains(remembered: &Mutex<VecDeque<[u8; 32]>>, digest: &[u8; 32]) -> bool {
    remembered.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
}

fn remember(remembered: &Mutex<VecDeque<[u8; 32]>>, digest: [u8; 32]) {
    let mut remembered = remembered.lock().unwrap_or_else(PoisonError::into_inner);
    if remembered.len() == REMEMBERED {
        remembered.pop_front();
    }
    remembered.push_back(digest);
}

/// Returns user and password [RFC 7617, section 2].
fn credentials(header: &HeaderValue) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = header.to_str().ok()?.split_once(' ')?;
    let decoded = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(encoded.trim()).ok())??;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded.get(..colon)?.to_vec()).ok()?;
    Some((user, decoded.get(colon + 1..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn passwords() -> Arc<Passwords> {
        let users = [("alice".to_owned(), bcrypt::hash("right", 4).unwrap())];
        Arc::new(Passwords::new(users.into()))
    }

    fn basic(user: &str, password: &str) -> HeaderValue {
        HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))).unwrap()
    }

    #[tokio::test]
    async fn only_the_right_password_of_the_right_user_is_accepted() {
        let passwords = passwords();
        for (header, verdict) in [
            (None, Verdict::Refused),
            (Some(basic("alice", "right")), Verdict::Accepted),
            (Some(basic("alice", "right")), Verdict::Accepted),
            (Some(basic("alice", "wrong")), Verdict::Refused),
            (Some(basic("bob", "right")), Verdict::Refused),
            (Some(HeaderValue::from_static("Basic !")), Verdict::Refused),
            (Some(HeaderValue::from_static("Bearer YWxpY2U6cmlnaHQ=")), Verdict::Refused),
            (Some(HeaderValue::from_static("Basic")), Verdict::Refused),
        ] {
            assert_eq!(passwords.check(header.as_ref()).await, verdict, "{header:?}");
        }
        let nobody = Arc::new(Passwords::new(BTreeMap::new()));
        assert_eq!(nobody.check(None).await, Verdict::Accepted);
    }

    #[tokio::test]
    async fn a_known_password_waits_for_nobody_while_wrong_ones_queue() {
        let passwords = passwords();
        let right = basic("alice", "right");
        assert_eq!(passwords.check(Some(&right)).await, Verdict::Accepted);
        let busy: Vec<_> = (0..4 * MAX_WAITING)
            .map(|number| {
                let passwords = passwords.clone();
                tokio::spawn(async move { passwords.check(Some(&basic("alice", &number.to_string()))).await })
            })
            .collect();
        tokio::task::yield_now().await;
        let verdict = tokio::time::timeout(Duration::from_millis(50), passwords.check(Some(&right))).await;
        assert_eq!(verdict, Ok(Verdict::Accepted));
        let mut turned_away = 0;
        for task in busy {
            turned_away += usize::from(task.await.unwrap() == Verdict::Busy);
        }
        assert_eq!(turned_away, 3 * MAX_WAITING);
        assert_eq!(passwords.check(Some(&right)).await, Verdict::Accepted, "wrong ones push out no right one");
    }

    #[tokio::test]
    async fn a_wrong_password_costs_bcrypt_once() {
        let passwords = passwords();
        let wrong = basic("alice", "wrong");
        assert_eq!(passwords.check(Some(&wrong)).await, Verdict::Refused);
        // What is remembered needs no other task.
        let again = tokio::time::timeout(Duration::ZERO, passwords.check(Some(&wrong))).await;
        assert_eq!(again, Ok(Verdict::Refused));
    }

    #[test]
    fn the_decoy_costs_what_a_hash_costs() {
        assert_eq!(bcrypt::verify("x", DECOY).ok(), Some(false));
    }
}
