/*
 * Quiescence with explicit store buffers: the handshake between a reader and whoever frees (docs/locking.md, C1 to C3).
 *
 * Modelled
 *   - READERS slots, the global epoch, one table that is unlinked, freed and linked again GENERATIONS times.
 *   - A store waits in its CPU's buffer, in order, until it reaches memory at any later time; loads look into memory, past
 *     the own buffer of other addresses. fence(SeqCst) waits until the buffer is empty. This is x86's order, and what of Arm's
 *     matters for a store that has to be seen before a later load.
 *   - The read-modify-write of the epoch may wait in the buffer, too: with exclusive loads and stores it may on Arm.
 *
 * Abstracted away, and so not proved here
 *   - Loads out of order, and stores of one CPU out of order, except as the variants QUIESCENT_RELAXED and
 *     ANNOUNCE_RELAXED do it by hand. loom explores the memory model of the language over the code itself.
 *   - Overflow of the epoch: 2^64 grace periods.
 *
 * Broken variants: ONLINE_WITHOUT_FENCE, BEGIN_WITHOUT_FENCE, QUIESCENT_RELAXED, ANNOUNCE_RELAXED.
 */

#define READERS 2
#define GENERATIONS 2
#define OFFLINE 0

bool no_reader_in_a_freed_table;
#define must(condition, property) if :: (condition) :: else -> assert(property) fi

/* Memory */
byte epoch = 1;
byte slot[READERS];
bool linked = true;

/* Buffers. A reader stores to nothing but its slot; the reclaimer to the link, then to the epoch. */
typedef Pending { bool waits; byte value };
Pending slot_store[READERS];
bool unlink_waits, advance_waits;

bool holds[READERS];                   /* ghost: the reader found the table and may look into it */
bool freed;                            /* ghost */

/* A store of the slot. The next one pushes the one before out of the buffer. */
inline store_slot(v) {
  atomic { /* Reader::online, Reader::quiescent, Reader::offline */
    if :: slot_store[me].waits -> slot[me] = slot_store[me].value :: else fi;
    slot_store[me].waits = true; slot_store[me].value = v
  }
}
inline look() { atomic { holds[me] = linked } }                     /* ReadOnly::find */
/* model: the last look is done */
inline leave() { atomic { must(!(holds[me] && freed), no_reader_in_a_freed_table); holds[me] = false } }

proctype Reader(byte me) {
  byte seen;
  do
  :: seen = epoch;                                                  /* Reader::online: relaxed load */
     store_slot(seen);                                              /* release store */
#ifndef ONLINE_WITHOUT_FENCE
     !slot_store[me].waits;                                         /* fence(SeqCst) */
#endif
     look();
     do
     :: true ->                                                     /* Reader::quiescent, and on with the next section */
#ifdef QUIESCENT_RELAXED
        leave(); look();                                            /* a load of the next section, done early */
        seen = epoch;
        store_slot(seen)
#elif defined(ANNOUNCE_RELAXED)
        seen = epoch;
        store_slot(seen);                                           /* seen before the last look is done */
        leave(); look()
#else
        leave();
        seen = epoch;                                               /* acquire: the looks below come after */
        store_slot(seen);                                           /* release: the looks above are done */
        look()
#endif
     :: true -> leave(); store_slot(OFFLINE); break                 /* Reader::offline: release */
     od;
     seen = 0
  :: true -> break                                                  /* in the guest for good */
  od
}

proctype Reclaimer() {
  byte period, n, generation;
  do
  :: generation < GENERATIONS ->
     unlink_waits = true;                                           /* Locked::detach_empty, and its unlock */
#ifndef BEGIN_WITHOUT_FENCE
     !unlink_waits;                                                 /* Quiescence::begin: fence(SeqCst) */
#endif
     atomic { period = epoch + 1; advance_waits = true };           /* Quiescence::begin: fetch_add, release */
     n = 0;
     do                                                             /* Quiescence::poll, until it is over */
     :: n == READERS -> break
     :: atomic { n < READERS && slot[n] == OFFLINE -> n++ }                      /* Quiescence::poll: load, acquire */
     :: atomic { n < READERS && slot[n] >= period -> n++ }                       /* Quiescence::poll: load, acquire */
     od;
     n = 0;
     !unlink_waits && !advance_waits;                               /* the lock of table memory, its release */
     atomic { must(!holds[0] && !holds[1], no_reader_in_a_freed_table); freed = true };     /* Batch<Quiesced>::free */
     atomic { freed = false; linked = true; generation++; period = 0 }                      /* Pool::alloc, Locked::link */
  :: generation == GENERATIONS -> break
  od
}

/* hardware: stores reach memory: each CPU's in order, otherwise whenever they like. */
proctype Memory() {
end:
  do
  :: atomic { slot_store[0].waits -> slot[0] = slot_store[0].value; slot_store[0].waits = false; slot_store[0].value = 0 }
  :: atomic { slot_store[1].waits -> slot[1] = slot_store[1].value; slot_store[1].waits = false; slot_store[1].value = 0 }
  :: atomic { unlink_waits -> linked = false; unlink_waits = false }
  :: atomic { !unlink_waits && advance_waits -> epoch++; advance_waits = false }
  od
}

init { atomic { run Reader(0); run Reader(1); run Reclaimer(); run Memory() } } /* model: all at once */
