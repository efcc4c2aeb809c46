//! What only a push consumer has: whether somebody listens, the flow-control window, the rate limit and
//! the idle heartbeat. Volatile: it begins anew after a restart.

use beamlog_log::Timestamp;
use bytes::Bytes;

use crate::consumer::PushConfig;

/// Bytes on their way to a client that answers flow control, at most.
const WINDOW_BYTES_MAX: u64 = 32 << 20;
/// The first window; it doubles with each answer.
const WINDOW_BYTES_FIRST: u64 = WINDOW_BYTES_MAX / 16;
/// A rate-limited consumer may send so much at once.
const RATE_BURST_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug)]
struct Window {
    bytes_max: u64,
    /// Sent since the last answer that counted.
    bytes_out: u64,
    /// The question that is open: its token, and the bytes its answer covers.
    asked: Option<(u64, u64)>,
    last_token: u64,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    bits_per_second: u64,
    /// When all that was sent would have been sent at the allowed rate.
    paid_until: u64,
}

impl Rate {
    fn nanos(self, bytes: u64) -> u64 {
        let nanos = u128::from(bytes) * 8_000_000_000 / u128::from(self.bits_per_second);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Push {
    pub(super) to: Bytes,
    pub(super) is_active: bool,
    heartbeat_nanos: Option<u64>,
    next_heartbeat: Timestamp,
    window: Option<Window>,
    rate: Option<Rate>,
}

impl Push {
    pub(super) fn new(config: &PushConfig) -> Self {
        let mut push = Self {
            to: Bytes::copy_from_slice(config.deliver_subject.as_bytes()),
            is_active: false,
            heartbeat_nanos: config.idle_heartbeat_nanos.filter(|nanos| *nanos > 0),
            next_heartbeat: Timestamp(0),
            window: config.flow_control.then_some(Window {
                bytes_max: WINDOW_BYTES_FIRST,
                bytes_out: 0,
                asked: None,
                last_token: 0,
            }),
            rate: None,
        };
        push.set_rate(config.rate_limit_bits_per_second);
        push
    }

    pub(super) fn set_rate(&mut self, bits_per_second: Option<u64>) {
        self.rate = bits_per_second
            .filter(|bits| *bits > 0)
            .map(|bits_per_second| Rate { bits_per_second, paid_until: 0 });
    }

    /// Whether another message may leave now, as far as listeners and window go.
    pub(super) fn may_send(&self) -> bool {
        self.is_active && self.window.as_ref().is_none_or(|window| window.bytes_out <= window.bytes_max)
    }

    /// When a message of so many bytes may leave.
    pub(super) fn allowed_at(&self, now: Timestamp, bytes: u64) -> Timestamp {
        let Some(rate) = self.rate else { return now };
        // A message larger than the burst goes when the burst is free: it could never go otherwise.
        let burst = rate.nanos(RATE_BURST_BYTES.max(bytes));
        let paid = rate.paid_until.max(now.0).saturating_add(rate.nanos(bytes));
        Timestamp(paid.saturating_sub(burst).max(now.0))
    }

    /// A message left. Returns the token of a flow-control question to ask now.
    pub(super) fn sent(&mut self, now: Timestamp, bytes: u64) -> Option<u64> {
        self.beat(now);
        if let Some(rate) = &mut self.rate {
            rate.paid_until = rate.paid_until.max(now.0).saturating_add(rate.nanos(bytes));
        }
        let window = self.window.as_mut()?;
        window.bytes_out += bytes;
        match &mut window.asked {
            None if window.bytes_out > window.bytes_max / 2 => {
                // Unique among the questions of this consumer, those before a restart included.
                let token = now.0.max(window.last_token + 1);
                window.last_token = token;
                window.asked = Some((token, window.bytes_out));
                Some(token)
            }
            None => None,
            Some((_, covered)) => {
                if window.bytes_out - *covered >= window.bytes_max {
                    *covered += bytes;
                }
                None
            }
        }
    }

    /// The client answered.
    pub(super) fn answered(&mut self, token: u64) -> bool {
        let Some(window) = &mut self.window else { return false };
        let Some((asked, covered)) = window.asked else { return false };
        if asked != token {
            return false;
        }
        window.bytes_max = (window.bytes_max * 2).min(WINDOW_BYTES_MAX);
        window.bytes_out = window.bytes_out.saturating_sub(covered);
        window.asked = None;
        true
    }

    /// The token that is waited for.
    pub(super) fn asked(&self) -> Option<u64> {
        self.window.as_ref()?.asked.map(|(token, _)| token)
    }

    /// Something was sent, or somebody began to listen: the silence is over.
    pub(super) fn beat(&mut self, now: Timestamp) {
        if let Some(nanos) = self.heartbeat_nanos {
            self.next_heartbeat = Timestamp(now.0.saturating_add(nanos));
        }
    }

    /// When it was silent for too long.
    pub(super) fn next_heartbeat(&self) -> Option<Timestamp> {
        (self.is_active && self.heartbeat_nanos.is_some()).then_some(self.next_heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(config: PushConfig) -> Push {
        let mut push = Push::new(&config);
        push.is_active = true;
        push
    }

    #[test]
    fn the_window_stops_a_client_that_does_not_answer_and_doubles_for_one_that_does() {
        let mut push = push(PushConfig { flow_control: true, ..PushConfig::default() });
        let mut token = None;
        let mut sent = 0;
        while push.may_send() {
            token = token.or(push.sent(Timestamp(7 + sent), 1 << 16));
            sent += 1;
        }
        assert_eq!(sent, WINDOW_BYTES_FIRST / (1 << 16) + 1);
        assert!(!push.answered(token.unwrap() + 1), "another token is no answer");
        assert!(push.answered(token.unwrap()));
        assert!(push.may_send());
        let more = (0..)
            .take_while(|n| {
                push.may_send() && {
                    push.sent(Timestamp(100 + n), 1 << 16);
                    true
                }
            })
            .count();
        assert!(more as u64 > sent, "the window grew");
    }

    #[test]
    fn a_rate_limit_lets_a_burst_through_and_then_one_message_per_share_of_time() {
        let push_at = PushConfig { rate_limit_bits_per_second: Some(8 << 20), ..PushConfig::default() };
        let mut push = push(push_at); // 1 MiB a second
        let now = Timestamp(1_000_000_000);
        for _ in 0..16 {
            assert_eq!(push.allowed_at(now, 1 << 16), now);
            push.sent(now, 1 << 16);
        }
        let next = push.allowed_at(now, 1 << 16);
        assert_eq!(next.0 - now.0, 1_000_000_000 / 16);
        assert_eq!(push.allowed_at(next, 1 << 16), next);
    }
}
