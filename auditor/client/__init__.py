"""The wire: requests signed as they are sent, answers deciphered into pages or into what to do next."""
