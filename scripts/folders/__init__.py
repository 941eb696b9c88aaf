"""What the tools that go through image folders share."""
