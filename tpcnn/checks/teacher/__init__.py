"""The teacher's command: it reads what students hand in. `import tpcnn` loads none of it."""
