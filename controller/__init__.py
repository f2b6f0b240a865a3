"""The Ryu controller: steering (`steering`, `ownership`), checkpoints (`collector`), failures (`detector`), takeovers
(`conductor`, `gate`), and their shells (`app`, `agents`, `api`, `cli`)."""
