//! Orders from the hypervisor's CPU to a vCPU's, and stories back.

use core::time::Duration;

use spin::Mutex;
use stage2_platform::{cpus, timer::Alarm};

use super::seat::{Order, Story};

/// How long a vCPU sleeps between two looks for an order: so that it takes no time from the one that has one.
const NAP: Duration = Duration::from_micros(20);

/// One vCPU's mailbox. It holds one thing at a time.
pub(crate) struct Mailbox(Mutex<Content>);

#[expect(clippy::large_enum_variant, reason = "there are two of them")]
enum Content {
    Nothing,
    Order(Order),
    /// The vCPU is at it.
    Taken,
    Story(Story),
    /// The vCPU is to leave its CPU.
    Leave,
}

impl Mailbox {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Content::Nothing))
    }

    /// Has the vCPU execute `order` and waits for its end.
    pub(crate) fn execute(&self, order: Order) -> Story {
        self.start(order);
        self.finish()
    }

    /// Has the vCPU begin with `order`.
    pub(crate) fn start(&self, order: Order) {
        *self.0.lock() = Content::Order(order);
    }

    /// Waits until the vCPU is done with what it was told.
    pub(crate) fn finish(&self) -> Story {
        self.wait(cpus::yield_now, |content| match core::mem::replace(content, Content::Nothing) {
            Content::Story(story) => Some(story),
            other => {
                *content = other;
                None
            }
        })
    }

    /// Sends the vCPU away.
    pub(crate) fn dismiss(&self) {
        *self.0.lock() = Content::Leave;
    }

    /// The vCPU's next order; `None` when it is sent away.
    pub(crate) fn receive(&self, alarm: &mut Alarm) -> Option<Order> {
        self.wait(
            || alarm.sleep(NAP),
            |content| match *content {
                Content::Order(order) => {
                    *content = Content::Taken;
                    Some(Some(order))
                }
                Content::Leave => Some(None),
                _ => None,
            },
        )
    }

    /// Reports what came of it, unless the vCPU was sent away meanwhile.
    pub(crate) fn report(&self, story: Story) {
        let mut content = self.0.lock();
        if let Content::Taken = *content {
            *content = Content::Story(story);
        }
    }

    fn wait<T>(&self, mut idle: impl FnMut(), mut look: impl FnMut(&mut Content) -> Option<T>) -> T {
        loop {
            if let Some(found) = look(&mut self.0.lock()) {
                return found;
            }
            idle();
        }
    }
}
