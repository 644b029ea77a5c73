//! Where a service is: one URL, or those of several controllers of which one leads.
//!
//! The one invariant: whoever answered last is asked first.

use std::sync::{PoisonError, RwLock};

/// URLs that are remembered; those that were given are never forgotten.
const PLACES_MAX: usize = 16;

/// URLs of one service.
#[derive(Debug)]
pub(super) struct Places {
    known: RwLock<Known>,
}

#[derive(Debug)]
struct Known {
    urls: Vec<String>,
    current: usize,
}

impl Places {
    /// From URLs with commas between them; the first that is not `https` is given back.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let urls: Vec<String> = text.split(',').map(|url| url.trim().trim_end_matches('/').to_owned()).collect();
        match urls.iter().find(|url| !url.starts_with("https://")) {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(Self { known: RwLock::new(Known { urls, current: 0 }) }),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        look(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.read(|known| known.urls.len())
    }

    /// Whom to ask.
    pub(super) fn current(&self) -> String {
        self.read(|known| known.urls[known.current].clone())
    }

    /// `from` did not answer: the next, unless somebody has seen to that already.
    pub(super) fn turn_from(&self, from: &str) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).turn_from(from);
    }

    /// `from` said that `leader` leads.
    pub(super) fn go_to(&self, from: &str, leader: &str) {
        let leader = leader.trim_end_matches('/');
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match known.urls.iter().position(|url| url == leader) {
            // It says that it leads itself, and stands by: a term begins or ends. Others know as much.
            Some(_) if leader == from => known.turn_from(from),
            Some(at) => known.current = at,
            None if leader.starts_with("https://") && known.urls.len() < PLACES_MAX => {
                known.urls.push(leader.to_owned());
                known.current = known.urls.len() - 1;
            }
            None => known.turn_from(from),
        }
    }
}

impl Known {
    fn turn_from(&mut self, from: &str) {
        if self.urls[self.current] == from {
            self.current = (self.current + 1) % self.urls.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_asked_in_turn_and_the_last_that_answered_first() {
        let places = Places::parse("https://a:1/, https://b:1").unwrap();
        assert_eq!((places.count(), places.current().as_str()), (2, "https://a:1"));
        places.turn_from("https://a:1");
        // Two requests failed at once: they turn once.
        places.turn_from("https://a:1");
        assert_eq!(places.current(), "https://b:1");
        places.turn_from("https://b:1");
        assert_eq!(places.current(), "https://a:1");
    }

    #[test]
    fn leader_that_is_named_is_asked_though_it_was_not_given() {
        let places = Places::parse("https://a:1").unwrap();
        places.go_to("https://a:1", "https://c:1/");
        assert_eq!((places.count(), places.current().as_str()), (2, "https://c:1"));
        places.go_to("https://c:1", "https://a:1");
        assert_eq!((places.count(), places.current().as_str()), (2, "https://a:1"));
    }

    #[test]
    fn names_that_lead_nowhere_are_not_followed_and_not_collected() {
        let places = Places::parse("https://a:1,https://b:1").unwrap();
        places.go_to("https://a:1", "http://plain:1");
        assert_eq!((places.count(), places.current().as_str()), (2, "https://b:1"));
        places.go_to("https://b:1", "https://b:1");
        assert_eq!(places.current(), "https://a:1");
        (0..100).for_each(|port| places.go_to("https://a:1", &format!("https://x:{port}")));
        assert_eq!(places.count(), PLACES_MAX);
    }

    #[test]
    fn url_without_tls_is_refused_by_name() {
        assert_eq!(Places::parse("https://a:1,http://b:1").unwrap_err(), "http://b:1");
    }
}
